"""The table of limits, what it refuses, and who wins where several places set a limit."""

import inspect
import math
import runpy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck import UsageError, assert_flow, assert_gradient, check_flow, check_gradient
from pytest_gradcheck.limits import LIMITS, PROMOTED, SOURCES, Limit, Limits, LimitUse, limits_of
from pytest_gradcheck.numerics.precision import EPSILON

DOCS = Path(__file__).parents[1] / "docs"
NUMERIC = [limit for limit in LIMITS if not limit.choices and not limit.suffix]
WORDS = [limit for limit in LIMITS if limit.choices]


def each(limits):
    return pytest.mark.parametrize("limit", limits, ids=lambda limit: limit.name)


def defaults(limit):
    return limit.default.values() if isinstance(limit.default, Mapping) else [limit.default]


# --- the table --------------------------------------------------------------------------------


def test_names_flags_and_ini_names_are_unique():
    for column in ("name", "flag", "ini"):
        values = [getattr(limit, column) for limit in LIMITS]
        assert len(set(values)) == len(values)


@each(LIMITS)
def test_names_derive_from_one_another(limit):
    assert limit.name.isidentifier()
    assert limit.name == limit.name.lower()
    assert limit.flag == f"--gradcheck-{limit.name}".replace("_", "-")
    assert limit.ini == f"gradcheck_{limit.name}"


@each(LIMITS)
def test_defaults_are_allowed(limit):
    for default in defaults(limit):
        assert limit.parse(default, "here") == default


@each(LIMITS)
def test_defaults_by_precision_name_known_precisions_and_have_float64(limit):
    if isinstance(limit.default, Mapping):
        assert "float64" in limit.default
        assert set(limit.default) <= {*EPSILON, PROMOTED}


@each(NUMERIC)
def test_a_coarser_precision_has_no_stricter_default(limit):
    ordered = [limit.default_for(d) for d in ("float64", "float32", "float16", "bfloat16")]
    assert ordered == sorted(ordered)


@each(LIMITS)
def test_help_is_one_phrase(limit):
    assert limit.help[0].isupper()
    assert not limit.help.endswith(".")
    assert "\n" not in limit.help
    assert limit.source
    assert limit.checks


@each(NUMERIC)
def test_a_number_has_a_range_and_a_unit(limit):
    assert limit.low < limit.high
    assert limit.unit


def test_default_falls_back_to_float64():
    (limit,) = (limit for limit in LIMITS if limit.name == "tolerance")
    assert limit.default_for("longdouble") == limit.default_for("float64")


# --- parsing ----------------------------------------------------------------------------------


@each(NUMERIC)
@given(data=st.data())
def test_every_number_in_the_range_is_taken_as_it_is(limit, data):
    numbers = st.floats(limit.low, limit.high, exclude_min=True)
    whole = st.integers(1, 1000).map(float)
    value = data.draw(whole if limit.is_whole else numbers)
    assert limit.parse(value, "here") == value
    assert limit.parse(repr(value), "here") == value  # from the command line


@each(NUMERIC)
@given(data=st.data())
def test_every_number_outside_the_range_is_refused(limit, data):
    outside = st.floats(max_value=limit.low) | st.floats(min_value=limit.high, exclude_min=True)
    with pytest.raises(UsageError):
        limit.parse(data.draw(outside), "here")


REFUSED = [
    math.nan,
    math.inf,
    -math.inf,
    True,
    None,
    "",
    "much",
    "1e-2x",
    1j,
    10**400,
    [0.1],
    np.array([0.1, 0.2]),
]


@each(NUMERIC)
@pytest.mark.parametrize("value", REFUSED, ids=lambda value: repr(value)[:12])
def test_what_is_no_number_is_refused(limit, value):
    with pytest.raises(UsageError) as caught:
        limit.parse(value, "pytest.ini: gradcheck_x")
    text = str(caught.value)
    assert text.startswith("pytest.ini: gradcheck_x: ")
    assert repr(value) in text
    assert text.endswith(f"allowed: {limit.allowed}")


@pytest.mark.parametrize("value", [0.5, 1e-9, 2.5, 0, 1001])
def test_what_is_counted_is_whole(value):
    with pytest.raises(UsageError, match="allowed: a whole number from 1 to 1000"):
        limits_of("gradstep")["step_calls"].parse(value, "here")


@each(WORDS)
@pytest.mark.parametrize(
    "value", ["pass", "FAIL", "", 1, None, ["fail"], np.array(["fail", "warn"])]
)
def test_a_word_that_is_no_choice_is_refused(limit, value):
    with pytest.raises(UsageError) as caught:
        limit.parse(value, "--gradcheck-x")
    assert str(caught.value) == (
        f"--gradcheck-x: {value!r} is not allowed; allowed: one of {', '.join(limit.choices)}"
    )


@each(WORDS)
def test_every_choice_is_taken(limit):
    assert [limit.parse(word, "here") for word in limit.choices] == list(limit.choices)


def test_a_budget_is_a_number_or_seconds():
    (budget,) = (limit for limit in LIMITS if limit.suffix)
    assert budget.parse("200", "here") == 200.0
    assert budget.parse(200, "here") == 200.0
    assert budget.parse("1.5s", "here") == "1.5s"
    assert budget.parse("unlimited", "here") == "unlimited"
    for value in (0, -1, "0s", "s", "soon", None, True, [3], "3m"):
        with pytest.raises(UsageError, match="seconds such as 30s"):
            budget.parse(value, "here")


def test_numpy_numbers_and_texts_become_builtins():
    (limit,) = (limit for limit in LIMITS if limit.name == "tolerance")
    for value in (np.float32(0.5), np.float64(0.5), "0.5", " 5e-1 "):
        assert type(limit.parse(value, "here")) is float
        assert limit.parse(value, "here") == 0.5


# --- precedence -------------------------------------------------------------------------------


def test_a_default_says_the_precision_it_is_for():
    limits = Limits("gradcheck")
    use = limits.use("tolerance", "float32")
    assert use == LimitUse("tolerance", use.value, "default", "float32")
    assert limits.number("tolerance", "float32") > limits.number("tolerance")


def test_the_last_place_wins_and_is_named():
    limits = Limits("gradcheck")
    places = ["pyproject.toml", "--gradcheck-tolerance", "hook", "@pytest.mark.gradcheck", "call"]
    for number, (source, place) in enumerate(zip(reversed(SOURCES[:-1]), places, strict=True)):
        limits = limits.narrowed(source, place, {"tolerance": 0.1 * (number + 1)})
        expected = LimitUse("tolerance", 0.1 * (number + 1), source, place)
        assert limits.use("tolerance") == expected
        assert limits.use("tolerance", "bfloat16") == expected  # set for every precision


def test_narrowing_leaves_the_others_and_the_original_alone():
    before = Limits("gradcheck").narrowed("flag", "here", {"resolution": 0.5})
    after = before.narrowed("call", "there", {"tolerance": 0.25})
    assert after.use("resolution") == before.use("resolution")
    assert before.use("tolerance").source == "default"
    assert after.narrowed("marker", "nowhere", {}) == after


def test_used_lists_every_limit_in_the_order_of_the_table():
    used = Limits("gradcheck").narrowed("call", "here", {"vacuous": "warn"}).used("float32")
    assert [use.name for use in used] == list(limits_of("gradcheck"))
    assert {use.name: use.source for use in used}["vacuous"] == "call"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        Limits("gradcheck").narrowed("marker", "@pytest.mark.gradcheck", {"atol": 1.0})
    assert str(caught.value) == (
        "@pytest.mark.gradcheck: gradcheck has no argument 'atol'; "
        f"it takes {', '.join(limits_of('gradcheck'))}; all else goes into the call of gradcheck"
    )


def test_a_bad_value_names_place_and_limit():
    with pytest.raises(UsageError, match=r"^@pytest.mark.gradcheck: tolerance: 2 is not allowed"):
        Limits("gradcheck").narrowed("marker", "@pytest.mark.gradcheck", {"tolerance": 2})


# --- the call and the page --------------------------------------------------------------------


VERBS = {
    "gradcheck": (check_gradient, assert_gradient),
    "gradflow": (check_flow, assert_flow),
}


@pytest.mark.parametrize("name", VERBS)
def test_the_verb_has_a_keyword_for_each_limit(name):
    for verb in VERBS[name]:
        parameters = inspect.signature(verb).parameters
        for limit in limits_of(name):
            assert parameters[limit].kind is inspect.Parameter.KEYWORD_ONLY
            assert parameters[limit].default is None
            assert f"        {limit}:" in VERBS[name][0].__doc__


VALUES = {limit.name: limit.high for limit in NUMERIC}
VALUES |= {limit.name: limit.choices[1] for limit in WORDS} | {"budget": "30s"}


@pytest.mark.parametrize("name", limits_of("gradcheck"))
def test_the_keyword_reaches_the_limit(name):
    result = check_gradient(np.sum, np.ones(2), grad=np.ones_like, **{name: VALUES[name]})
    (use,) = (use for use in result.limits if use.name == name)
    assert use == LimitUse(name, VALUES[name], "call", "gradcheck(...)")


@pytest.mark.parametrize("name", limits_of("gradflow"))
def test_the_keyword_reaches_the_limit_of_flow(name):
    result = check_flow({"a": np.eye(2), "b": np.eye(2)}, **{name: VALUES[name]})
    (use,) = (use for use in result.limits if use.name == name)
    assert use == LimitUse(name, VALUES[name], "call", "gradflow(...)")


def test_the_page_is_the_one_that_the_table_makes():
    made = runpy.run_path(str(DOCS / "generate.py"))["page"]()
    assert (DOCS / "limits.md").read_text("utf-8") == made, "run: python docs/generate.py"


@each(LIMITS)
def test_the_page_tells_all_about_a_limit(limit: Limit):
    section = (DOCS / "limits.md").read_text("utf-8").split(f"## `{limit.name}`")[1].split("## ")[0]
    for fact in (limit.flag, limit.ini, limit.help, limit.source, limit.unit, limit.allowed):
        assert fact in section
    for default in defaults(limit):
        assert f"`{default}`" in section or f"`{default:g}`" in section
