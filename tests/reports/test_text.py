"""Results as text: complete, short lines, the first one alone."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gradcheck import check_gradient
from pytest_gradcheck.collector import Collecting, Collector
from pytest_gradcheck.limits import SOURCES, LimitUse
from pytest_gradcheck.reports import run as runs
from pytest_gradcheck.reports import text
from pytest_gradcheck.results import (
    CHECKS,
    SEVERITIES,
    VERDICTS,
    Context,
    Evidence,
    Finding,
    Result,
)

FAILURE_WIDTH = 76  # pytest puts "E   " before each line

# Reasonable names: words of up to 20 letters, sentences of any length.
WORDS = st.sampled_from(["x", "w1", "bias", "encoder.weight", "a" * 20])
SENTENCES = st.lists(WORDS, min_size=1, max_size=20).map(" ".join)
HEADLINES = SENTENCES.map(lambda sentence: sentence[:99].strip())
CELLS = st.floats() | st.integers(-(10**6), 10**6) | st.none() | st.booleans() | WORDS
TABLES = st.integers(0, 8).flatmap(
    lambda count: st.builds(
        Evidence,
        name=st.sampled_from(["inputs", "resolution", "other"]),
        title=SENTENCES,
        columns=st.just(("input", "claimed", "bound")),
        rows=st.tuples(*[st.tuples(WORDS, CELLS, st.floats())] * count),
    )
)


def tuples(of, most):
    return st.lists(of, max_size=most).map(tuple)


FINDINGS = st.builds(
    Finding,
    code=st.sampled_from(["gradient-sign", "kink"]),
    severity=st.sampled_from(SEVERITIES),
    message=SENTENCES,
    where=WORDS,
)
LIMIT_USES = st.builds(
    LimitUse, name=WORDS, value=st.floats() | WORDS, source=st.sampled_from(SOURCES)
)
RESULTS = st.builds(
    Result,
    check=st.sampled_from(CHECKS),
    label=WORDS,
    verdict=st.sampled_from(VERDICTS),
    headline=HEADLINES,
    findings=tuples(FINDINGS, 8),
    evidence=tuples(TABLES, 2),
    limits=tuples(LIMIT_USES, 6),
    context=st.builds(
        Context,
        backend=st.sampled_from(["", "torch"]),
        device=WORDS,
        dtype=WORDS,
        precision=SENTENCES,
        seed=st.integers(0, 2**31),
        evaluations=st.integers(0, 10**6),
        derivatives=st.integers(0, 10**6),
        test=st.just("") | WORDS,
    ),
    advice=tuples(SENTENCES, 3),
)
RUNS = st.builds(
    runs.Run,
    tests=tuples(st.builds(runs.Test, nodeid=WORDS, results=tuples(RESULTS, 3)), 3),
)
FEW = settings(max_examples=30, deadline=None)


def example(**changes):
    known = {"check": "gradient", "label": "f", "verdict": "fail", "headline": "wrong: x"}
    return Result(**known | changes)


def finding(message, severity="warn", code="some-code"):
    return Finding(code=code, severity=severity, message=message)


# --- every failure ----------------------------------------------------------------------------


@FEW
@given(RESULTS)
def test_a_failure_fits_the_terminal_and_begins_with_its_headline(result):
    first, *lines = text.failure(result).split("\n")
    assert first == result.headline
    assert len(first) < 100
    assert [line for line in lines if len(line) > FAILURE_WIDTH] == []
    assert all(line.strip() for line in lines)
    assert lines[-1].startswith("reproduce: ")
    assert f"seed={result.context.seed}" in lines[-1]


@FEW
@given(RESULTS)
def test_a_failure_tells_what_to_try(result):
    flat = " ".join(text.failure(result).split())
    for advice in result.advice:
        assert f"try: {advice}" in flat


@FEW
@given(RUNS, st.integers(-1, 2))
def test_a_summary_fits_the_terminal(run, verbosity):
    lines = [text.one_line(run), *text.summary(run, verbosity)]
    assert [line for line in lines if len(line) > text.WIDTH] == []


@FEW
@given(RUNS)
def test_a_verbose_summary_names_every_test_with_results(run):
    lines = text.summary(run, 1)
    for test in run.final:
        for result in test.results:
            head = f"{result.verdict.upper()} {test.nodeid}"
            assert head in lines or f"{head} (the test passed)" in lines


X = np.array([0.3, -1.2, 2.0])


def cosine(x):
    return np.diag(np.cos(x))


@pytest.mark.parametrize(
    ("expected", "derivative", "options"),
    [
        ("pass", cosine, {}),
        ("fail", lambda x: -cosine(x), {}),
        ("fail", lambda x: cosine(x)[0], {}),
        ("undecided", cosine, {"resolution": 1e-15}),
        ("vacuous", lambda x: cosine(x) * 0, {"fn": lambda x: x * 0}),
    ],
)
def test_real_results_fit_the_terminal(expected, derivative, options):
    fn, options = options.get("fn", np.sin), {k: v for k, v in options.items() if k != "fn"}
    with Collecting(Collector(test="test_f.py::test_f")):
        result = check_gradient(fn, X, jac=derivative, label="a_reasonable_name", **options)
    assert result.verdict == expected
    first, *lines = text.failure(result).split("\n")
    assert first == result.headline
    assert len(first) < 100
    assert [line for line in lines if len(line) > FAILURE_WIDTH] == []


# --- its parts --------------------------------------------------------------------------------


def test_a_failure_word_by_word():
    result = example(
        headline="wrong gradient of f: x has the wrong sign",
        findings=(
            finding("x has the wrong sign", "fail", "gradient-sign"),
            finding("two equal calls of the function differ", "warn", "nondeterministic"),
        ),
        evidence=(
            Evidence(
                name="inputs",
                title="t",
                columns=("input", "claimed", "ratio"),
                rows=(("x", 1.23456, -1.0), ("longer", -1e-9, math.nan)),
            ),
            Evidence(name="differences", title="t", columns=("step",), rows=((1.0,),)),
        ),
        limits=(
            LimitUse("tolerance", 1e-8, "default", "float64"),
            LimitUse("undecided", "fail", "default", "float64"),
            LimitUse("vacuous", "warn", "flag", "--gradcheck-vacuous"),
        ),
        context=Context(
            backend="numpy",
            device="cpu",
            dtype="float32",
            precision="float64, promoted",
            seed=7,
            evaluations=18,
            derivatives=2,
            test="test_f.py::test[a b]",
        ),
        advice=("look for a minus sign",),
    )
    assert text.failure(result).split("\n") == [
        "wrong gradient of f: x has the wrong sign",
        "  warn: two equal calls of the function differ [nondeterministic]",
        "  input   claimed  ratio",
        "  x          1.23     -1",
        "  longer   -1e-09      -",
        "try: look for a minus sign",
        "limits: tolerance=1e-08 (default), vacuous=warn (flag)",
        "checked: numpy on cpu, float32, reference in float64, promoted, 18",
        "         evaluations, 2 derivatives",
        "reproduce: pytest 'test_f.py::test[a b]' --gradcheck-seed=7",
    ]


def test_a_bare_result_is_two_lines():
    assert text.failure(example()) == "wrong: x\nreproduce: call it with seed=0"


def test_a_long_path_is_not_broken():
    path = "encoder." + "layer." * 20 + "weight"
    assert path in text.failure(example(advice=(f"look at {path}",)))


def test_the_worst_are_shown_and_the_rest_counted():
    findings = tuple(finding(f"message {i}") for i in range(text.WORST + 2))
    rows = tuple((f"x{i}", i) for i in range(text.WORST + 3))
    shown = Evidence(name="inputs", title="t", columns=("input", "n"), rows=rows)
    lines = text.failure(example(findings=findings, evidence=(shown,))).split("\n")
    assert "  … and 2 more" in lines
    assert "  … and 3 more" in lines
    assert not any(f"message {text.WORST}" in line for line in lines)
    assert not any(f"x{text.WORST}" in line for line in lines)


def test_a_table_without_rows_is_its_header():
    assert text.table(Evidence(name="n", title="t", columns=("a", "b"), rows=())) == ["a  b"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.123"),
        (1234567.0, "1.23e+06"),
        (math.inf, "inf"),
        (math.nan, "-"),
        (None, "-"),
        (True, "True"),
        (1234567, "1234567"),
        ("x", "x"),
    ],
)
def test_a_cell_has_three_significant_digits(value, shown):
    assert text.cell(value) == shown


# --- the summary ------------------------------------------------------------------------------


def run_of(*results, outcome="failed"):
    return runs.Run(tests=(runs.Test(nodeid="t.py::test", outcome=outcome, results=results),))


def test_counts_in_words():
    results = [example(verdict=v) for v in ("vacuous", "pass", "fail", "undecided", "pass")]
    assert text.counts(results) == "2 passed, 1 failed, 1 undecided, 1 vacuous"
    assert text.one_line(run_of(*results)).startswith("gradcheck: 5 checks: 2 passed")
    assert text.one_line(run_of(results[1])) == "gradcheck: 1 check: 1 passed"


def test_a_summary_shows_what_is_not_green_and_warnings():
    green = example(verdict="pass", headline="right")
    warned = dataclasses.replace(green, findings=(finding("it depends on nothing"),))
    noted = dataclasses.replace(green, findings=(finding("it has a kink", "note"),))
    run = run_of(green, warned, noted, example(findings=(finding("beside it"),)))
    assert text.summary(run, 0) == [
        "4 checks: 3 passed, 1 failed",
        "PASS t.py::test",
        "  right",
        "  warn: it depends on nothing [some-code]",
        "FAIL t.py::test",
        "  wrong: x",
    ]
    assert text.summary(run, 1).count("PASS t.py::test") == 3


def test_a_summary_begins_with_what_made_tests_fail():
    warned = example(verdict="pass", findings=(finding("it depends on nothing"),))
    many = [runs.Test(nodeid=f"t{k}", results=(warned,)) for k in range(text.WORST)]
    wanted = runs.Test(nodeid="wanted", results=(example(),))
    failed = runs.Test(nodeid="failed", outcome="failed", results=(example(),))
    lines = text.summary(runs.Run(tests=(*many, wanted, failed)), 0)
    heads = [line for line in lines[1:] if not line.startswith((" ", "…"))]
    assert heads[:3] == ["FAIL failed", "FAIL wanted (the test passed)", "PASS t0"]


def test_a_summary_counts_what_it_leaves_out():
    run = run_of(*[example()] * (text.WORST + 1))
    assert text.summary(run, 0)[-1] == "… and 1 more; -v shows all"
    assert text.summary(run, 0).count("FAIL t.py::test") == text.WORST
    assert text.summary(run, 1).count("FAIL t.py::test") == text.WORST + 1


def test_a_summary_leaves_out_attempts_that_a_rerun_replaced():
    tests = (
        runs.Test(nodeid="t", attempt=1, results=(example(),)),
        runs.Test(nodeid="t", attempt=2, results=(example(verdict="pass"),)),
    )
    assert text.summary(runs.Run(tests=tests), 0) == ["1 check: 1 passed"]
