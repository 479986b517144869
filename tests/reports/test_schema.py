"""The schema of the JSON report describes real reports, and refuses broken ones."""

import copy
import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gradcheck import check_gradient
from pytest_gradcheck.limits import SOURCES, VERBS, LimitUse
from pytest_gradcheck.reports import json as json_report
from pytest_gradcheck.reports import run as runs
from pytest_gradcheck.results import (
    CHECKS,
    SCHEMA_VERSION,
    SEVERITIES,
    VERDICTS,
    Context,
    Evidence,
    Finding,
    Result,
)

SCHEMA = json.loads(files("pytest_gradcheck.reports").joinpath("schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
DEFS = SCHEMA["$defs"]
X = np.array([0.3, -1.2, 2.0])


def real_results():
    return {
        "pass": check_gradient(np.sin, X, jac=lambda x: np.diag(np.cos(x)), seed=1),
        "fail": check_gradient(np.sin, X, jac=lambda x: -np.diag(np.cos(x)), seed=1),
        "undecided": check_gradient(
            np.sin, X, jac=lambda x: np.diag(np.cos(x)), resolution=1e-15, seed=1
        ),
        "vacuous": check_gradient(
            lambda x: x * 0 + 1, X, jac=lambda x: np.zeros((3, 3)), seed=1, vacuous="warn"
        ),
    }


def report(*results):
    test = runs.Test(nodeid="test_f.py::test_f", results=results)
    run = runs.Run(tests=(test,), version="1.0", extra=(("other", {"free": [None]}),))
    return json.loads(json_report.render(run))


@pytest.fixture(scope="module")
def plain():
    return report(*real_results().values())


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_real_report_is_valid(verdict):
    result = real_results()[verdict]
    assert result.verdict == verdict
    VALIDATOR.validate(report(result))


def test_empty_report_is_valid():
    VALIDATOR.validate(runs.Run().to_plain())


TEXTS = st.text(max_size=5) | st.sampled_from(["NaN", "\ud800"])
NUMBERS = st.floats() | st.integers()
SCALARS = TEXTS | NUMBERS | st.booleans() | st.none()


def tuples(of):
    return st.lists(of, max_size=2).map(tuple)


RESULTS = st.builds(
    Result,
    check=st.sampled_from(CHECKS),
    label=TEXTS,
    verdict=st.sampled_from(VERDICTS),
    headline=TEXTS,
    findings=tuples(
        st.builds(
            Finding,
            code=st.just("some-code"),
            severity=st.sampled_from(SEVERITIES),
            message=TEXTS,
            where=TEXTS,
            numbers=tuples(st.tuples(TEXTS, NUMBERS)),
        )
    ),
    evidence=tuples(
        st.builds(
            Evidence,
            name=st.just("some-table"),
            title=TEXTS,
            columns=tuples(TEXTS),
            rows=tuples(tuples(SCALARS)),
        )
    ),
    limits=tuples(
        st.builds(LimitUse, name=TEXTS, value=SCALARS, source=st.sampled_from(SOURCES), place=TEXTS)
    ),
    context=st.builds(Context, backend=TEXTS, seed=st.integers(), seconds=st.floats()),
    advice=tuples(TEXTS),
)


@settings(deadline=None)
@given(tuples(RESULTS))
def test_generated_report_is_valid(results):
    VALIDATOR.validate(report(*results))


def broken(plain, *path, value):
    """The report with one value replaced; ``value=None`` takes the key out."""
    changed = copy.deepcopy(plain)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


RESULT = ("tests", 0, "results", 1)  # the failed one: it has findings, numbers and tables


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("unknown",), 1),
        (("tool", "name"), "other"),
        (("tool", "unknown"), 1),
        (("totals", "pass"), -1),
        (("totals", "unknown"), 1),
        (("tests",), {}),
        (("extra",), None),
        (("tests", 0, "phase"), "collect"),
        (("tests", 0, "outcome"), "error"),
        (("tests", 0, "attempt"), 0),
        (("tests", 0, "unknown"), 1),
        ((*RESULT, "check"), "hessian"),
        ((*RESULT, "verdict"), "ok"),
        ((*RESULT, "headline"), None),
        ((*RESULT, "unknown"), 1),
        ((*RESULT, "advice"), "one text"),
        ((*RESULT, "findings", 0, "severity"), "error"),
        ((*RESULT, "findings", 0, "code"), "Not Kebab"),
        ((*RESULT, "findings", 0, "unknown"), 1),
        ((*RESULT, "findings", 0, "numbers", "bound"), "nan"),
        ((*RESULT, "findings", 0, "numbers", "bound"), True),
        ((*RESULT, "evidence", 0, "rows"), [[[1]]]),
        ((*RESULT, "evidence", 0, "unknown"), 1),
        ((*RESULT, "limits", 0, "source"), "guess"),
        ((*RESULT, "limits", 0, "unknown"), 1),
        ((*RESULT, "context", "seed"), 0.5),
        ((*RESULT, "context", "seconds"), "long"),
        ((*RESULT, "context", "unknown"), 1),
    ],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else None,
)
def test_broken_report_is_refused(plain, path, value):
    VALIDATOR.validate(plain)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(broken(plain, *path, value=value))


@pytest.mark.parametrize(
    ("room", "field", "words"),
    [
        ("result", "check", CHECKS),
        ("result", "verdict", VERDICTS),
        ("finding", "severity", SEVERITIES),
        ("limit", "source", SOURCES),
    ],
)
def test_words_are_those_of_the_code(room, field, words):
    assert tuple(DEFS[room]["properties"][field]["enum"]) == words


def test_version_and_totals_are_those_of_the_code():
    assert DEFS["run"]["properties"]["schema"] == {"const": SCHEMA_VERSION}
    totals = DEFS["run"]["properties"]["totals"]
    assert tuple(totals["properties"]) == ("checks", *VERDICTS)


@pytest.mark.parametrize(
    "room", ["run", "test", "result", "finding", "evidence", "limit", "context"]
)
def test_every_field_is_required_and_no_other_is_allowed(room):
    rule = DEFS[room]
    assert set(rule["required"]) == set(rule["properties"])
    assert rule["additionalProperties"] is False


def test_every_field_is_explained():
    page = files("pytest_gradcheck").joinpath("../docs/report.md").read_text("utf-8")
    told = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    fields = {name for rule in DEFS.values() for name in rule.get("properties", {})}
    assert told == fields


def test_every_table_and_every_check_stands_on_the_page():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "report.md").read_text("utf-8")
    sources = [path.read_text("utf-8") for path in (root / "pytest_gradcheck").rglob("*.py")]
    made = {name for text in sources for name in re.findall(r'Evidence\(\s*name="([a-z-]+)"', text)}
    rows = page.split("| check | tables |")[1].split("\n\n")[0].splitlines()[2:]
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row.split("|")[2])} == made
    assert [row.split("|")[1].strip() for row in rows] == list(VERBS.values())
    (checks,) = re.findall(r"^\| `check` \|.*$", page, re.MULTILINE)
    assert set(re.findall(r"`([a-z]+)`", checks)) == {"check", *CHECKS}
