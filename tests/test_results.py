"""A result survives its way through plain builtins and strict JSON."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.limits import SOURCES, LimitUse
from pytest_gradcheck.reports import json as json_report
from pytest_gradcheck.reports import run as runs
from pytest_gradcheck.results import (
    CHECKS,
    SEVERITIES,
    VERDICTS,
    Context,
    Evidence,
    Finding,
    Result,
    result_from_plain,
)

TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "\\NaN",
        "\\\\-Infinity",
        "\\",
        "nan",
        "\ud7ff",
        "é \U0001f600",
    ]
)
NUMBERS = (
    st.floats() | st.integers() | st.sampled_from([10**400, -(10**400), -0.0, math.inf, math.nan])
)
SCALARS = TEXTS | NUMBERS | st.booleans() | st.none()
KEBAB = st.from_regex(re.compile(r"[a-z0-9]{1,5}(-[a-z0-9]{1,5})?", re.ASCII), fullmatch=True)


def tuples(of, **bounds):
    return st.lists(of, max_size=3, **bounds).map(tuple)


FINDINGS = st.builds(
    Finding,
    code=KEBAB,
    severity=st.sampled_from(SEVERITIES),
    message=TEXTS,
    where=TEXTS,
    numbers=tuples(st.tuples(TEXTS, NUMBERS), unique_by=lambda pair: pair[0]),
)
EVIDENCE = st.builds(
    Evidence, name=KEBAB, title=TEXTS, columns=tuples(TEXTS), rows=tuples(tuples(SCALARS))
)
LIMIT_USES = st.builds(
    LimitUse, name=TEXTS, value=SCALARS, source=st.sampled_from(SOURCES), place=TEXTS
)
COUNTS = st.integers(min_value=0)
CONTEXTS = st.builds(
    Context,
    backend=TEXTS,
    device=TEXTS,
    dtype=TEXTS,
    precision=TEXTS,
    seed=st.integers(),
    evaluations=COUNTS,
    derivatives=COUNTS,
    seconds=st.floats(),
    location=TEXTS,
    test=TEXTS,
)
RESULTS = st.builds(
    Result,
    check=st.sampled_from(CHECKS),
    label=TEXTS,
    verdict=st.sampled_from(VERDICTS),
    headline=TEXTS,
    findings=tuples(FINDINGS),
    evidence=tuples(EVIDENCE),
    limits=tuples(LIMIT_USES),
    context=CONTEXTS,
    advice=tuples(TEXTS),
)
TESTS = st.builds(
    runs.Test,
    nodeid=TEXTS,
    phase=st.sampled_from(["setup", "call", "teardown"]),
    attempt=st.integers(min_value=1, max_value=3),
    outcome=st.sampled_from(["passed", "failed", "skipped", "rerun"]),
    worker=TEXTS,
    results=tuples(RESULTS),
)
RUNS = st.builds(
    runs.Run, tests=tuples(TESTS), version=TEXTS, extra=st.just((("other-plugin", {"any": [1]}),))
)


def exact(value):
    """The value in a form where NaN equals NaN, and 1, 1.0, True and 0.0, -0.0 all differ."""
    if dataclasses.is_dataclass(value):
        return tuple((f.name, exact(getattr(value, f.name))) for f in dataclasses.fields(value))
    if isinstance(value, tuple):
        return tuple(exact(item) for item in value)
    return type(value).__name__, repr(value)


def builtins_only(value):
    if type(value) is dict:
        return all(type(key) is str and builtins_only(item) for key, item in value.items())
    if type(value) is list:
        return all(builtins_only(item) for item in value)
    return value is None or type(value) in (str, bool, int, float)


def through_json(plain):
    def refuse(word):
        raise AssertionError(f"{word} is not strict JSON")

    return json.loads(json.dumps(plain, allow_nan=False), parse_constant=refuse)


def example(**changes):
    known = {"check": "gradient", "label": "f", "verdict": "pass", "headline": "right"}
    return Result(**known | changes)


def with_cell(value):
    return example(evidence=(Evidence(name="t", title="t", columns=("c",), rows=((value,),)),))


def cell_of(result):
    return result.evidence[0].rows[0][0]


@given(RESULTS)
def test_round_trip(result):
    plain = result.to_plain()
    assert builtins_only(plain)
    assert exact(result_from_plain(through_json(plain))) == exact(result)


@given(RUNS)
def test_round_trip_of_a_run(run):
    back = runs.run_from_plain(through_json(run.to_plain()))
    assert exact(back) == exact(run)


@given(RESULTS)
def test_plain_form_of_the_way_back_is_the_same(result):
    plain = result.to_plain()
    assert repr(result_from_plain(plain).to_plain()) == repr(plain)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        ("NaN", "\\NaN"),
        ("\\NaN", "\\\\NaN"),
        ("nan", "nan"),
        (10**400, 10**400),
        (None, None),
        (True, True),
    ],
)
def test_plain_form_of_a_cell(value, plain):
    result = with_cell(value)
    assert result.to_plain()["evidence"][0]["rows"] == [[plain]]
    assert exact(cell_of(result_from_plain(result.to_plain()))) == exact(value)


def test_minus_zero_keeps_its_sign():
    back = result_from_plain(through_json(with_cell(-0.0).to_plain()))
    assert math.copysign(1, cell_of(back)) == -1


def test_text_of_a_number_stays_text_everywhere():
    finding = Finding(code="c", severity="note", message="NaN", where="Infinity")
    result = example(
        label="NaN",
        headline="-Infinity",
        findings=(finding,),
        limits=(LimitUse("x", "NaN", "flag", "Infinity"),),
        context=Context(device="NaN"),
        advice=("NaN",),
    )
    assert result_from_plain(through_json(result.to_plain())) == result


def test_numpy_float64_becomes_a_builtin():
    assert builtins_only(with_cell(np.float64(0.5)).to_plain())


def test_lone_surrogates_are_escaped():
    plain = example(label="a\ud800b", advice=("\udcff",)).to_plain()
    assert plain["label"] == "a\\ud800b"
    assert plain["advice"] == ["\\udcff"]
    json.dumps(plain, ensure_ascii=False).encode("utf-8")


def test_lone_surrogate_in_a_node_id_does_not_stop_the_report():
    run = runs.Run(tests=(runs.Test(nodeid="test_\udcff.py::test", worker="\udcff"),))
    json_report.render(run).encode("utf-8")


@pytest.mark.parametrize(
    "value",
    [
        example(),
        Context(),
        Finding(code="c", severity="note", message="m"),
        Evidence(name="n", title="t", columns=(), rows=()),
        LimitUse("n", 1.0, "default"),
        runs.Test(nodeid="t"),
        runs.Run(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_frozen(value):
    name = value._fields[0] if isinstance(value, tuple) else dataclasses.fields(value)[0].name
    with pytest.raises(AttributeError):
        setattr(value, name, "changed")


@given(RESULTS)
def test_results_are_hashable(result):
    assert len({result, dataclasses.replace(result)}) == 1


def test_finding_answers_by_name():
    finding = Finding(code="c", severity="note", message="m", numbers=(("loss", 2.0),))
    assert finding.number("loss") == 2.0
    with pytest.raises(KeyError):
        finding.number("gain")


def test_table_answers_by_name():
    result = with_cell(1)
    assert result.table("t") is result.evidence[0]
    assert result.table("other") is None


def test_a_rerun_replaces_what_an_earlier_attempt_found():
    first = runs.Test(nodeid="t", attempt=1, results=(example(verdict="fail"),))
    second = runs.Test(nodeid="t", attempt=2, results=(example(),))
    run = runs.Run(tests=(first, second))
    assert [result.verdict for result in run.results] == ["pass"]
    assert run.to_plain()["totals"] == {
        "checks": 1,
        "pass": 1,
        "fail": 0,
        "undecided": 0,
        "vacuous": 0,
    }
    assert len(run.to_plain()["tests"]) == 2


def test_a_result_is_printed_for_a_reader_and_shown_in_short():
    found = Finding(code="c", severity="fail", message="it is wrong")
    result = dataclasses.replace(
        example(verdict="fail"), headline="wrong f", findings=(found,), advice=("look there",)
    )
    assert str(result) == "wrong f\n  fail: it is wrong [c]\ntry: look there"
    assert repr(result) == "Result(verdict='fail', headline='wrong f')"
