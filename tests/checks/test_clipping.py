"""Clips that are right, clips with one mistake each, and set-ups that prove nothing."""

import math

import numpy as np
import pytest

from pytest_gradcheck import GradCheckError, UsageError, assert_clipping, check_clipping


def norm(gradients, p=2.0):
    row = np.concatenate([np.ravel(g) for g in gradients]).astype(np.float64)
    return float(np.linalg.norm(row, p))


def by_norm(factor, p=2.0):
    """A clip of a list with a factor of one's own."""
    return lambda gradients: [g * factor(norm(gradients, p)) for g in gradients]


def right(gradients, max_norm=1.0, norm_type=2.0):
    size = norm(gradients, norm_type)
    scale = max_norm / size if size > max_norm else 1.0
    return [g * scale for g in gradients]


def found(result):
    return {f.code for f in result.findings if f.severity == "fail"}


# --- right ones ---------------------------------------------------------------------------------

RIGHT = {
    "list": right,
    "with the norm": lambda g: (right(g), norm(g)),
    "the norm first": lambda g: (norm(g), right(g)),
    "dictionary": lambda g: dict(zip(g, right(list(g.values())), strict=True)),
    "epsilon of torch": by_norm(lambda n: min(1.0, 1 / (n + 1e-6))),
}


@pytest.mark.parametrize("clip", RIGHT.values(), ids=RIGHT)
def test_right_clips_pass(clip):
    assert check_clipping(clip, max_norm=1.0).verdict == "pass"


def test_in_place_with_the_norm_returned():
    def clip(gradients):
        size = norm(gradients)
        for g in gradients:
            g *= min(1.0, 0.3 / size) if size > 0 else 1.0
        return size

    assert check_clipping(clip, max_norm=0.3).verdict == "pass"


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_orders_of_the_norm(p):
    clip = lambda g: right(g, 1.0, p)  # noqa: E731  # one line says all
    assert check_clipping(clip, max_norm=1.0, norm_type=p).verdict == "pass"
    other = 2.0 if p != 2.0 else 1.0
    assert "clip-wrong-norm" in found(check_clipping(clip, max_norm=1.0, norm_type=other)) or p == 3


def test_values():
    assert check_clipping(lambda g: [x.clip(-1, 1) for x in g], max_value=1.0).verdict == "pass"


def test_by_tensor():
    clip = lambda g: [right([x])[0] for x in g]  # noqa: E731  # one line says all
    assert check_clipping(clip, max_norm=1.0, per="tensor").verdict == "pass"


def test_per_example_by_hand():
    def clip(gradients):
        count = len(gradients[0])
        each = [right([g[i] for g in gradients]) for i in range(count)]
        return [np.mean([e[j] for e in each], axis=0) for j in range(len(gradients))]

    assert check_clipping(clip, max_norm=1.0, per="example").verdict == "pass"


@pytest.mark.parametrize("threshold", [1e-3, 1.0, 50.0, 1e4])
def test_the_verdict_does_not_depend_on_the_threshold(threshold):
    assert check_clipping(lambda g: right(g, threshold), max_norm=threshold).verdict == "pass"
    wrong = check_clipping(lambda g: right(g, 1.1 * threshold), max_norm=threshold)
    assert found(wrong) == {"clip-threshold"}


# --- one mistake each -----------------------------------------------------------------------------

WRONG = {
    "clip-not-applied": lambda g: g,
    "clip-per-tensor": lambda g: [right([x])[0] for x in g],
    "clip-by-value": lambda g: [x.clip(-1, 1) for x in g],
    "clip-boost": by_norm(lambda n: 1 / n if n > 0 else 1.0),
    "clip-sign": by_norm(lambda n: -1 / n if n > 1 else 1.0),
    "clip-wrong-norm": lambda g: right(g, 1.0, 1.0),
    "clip-norm": by_norm(lambda n: 1 / n**2 if n > 1 else 1.0),
    "clip-threshold": lambda g: right(g, 2.0),
    "clip-touched": by_norm(lambda n: 1 / n if n > 1 else 0.999),
    "clip-missed-tensor": lambda g: [*right(g)[:-2], g[-2], right(g)[-1]],
    "clip-direction": lambda g: [x * np.where(x > 0, 0.9, 1.1) for x in right(g)],
    "clip-tied": by_norm(lambda n: 1.0),
    "clip-zero-gradient": by_norm(lambda n: min(1.0, 1 / n)),
    "clip-returned-norm": lambda g: (right(g), norm(right(g))),
    "clip-nonfinite": lambda g: [np.nan_to_num(x, nan=0.1, posinf=0.1) for x in right(g)],
    "clip-raised": lambda g: 1 / 0,
    "clip-broken": by_norm(lambda n: 1 / n if n > 1 else np.nan),
}


def tied(gradients):
    size = norm([*gradients, gradients[1]])
    return [g * (1 / size if size > 1 else 1.0) for g in gradients]


@pytest.mark.parametrize("code", WRONG)
def test_mistakes_are_named(code):
    clip = tied if code == "clip-tied" else WRONG[code]
    result = check_clipping(clip, max_norm=1.0)
    assert result.verdict == "fail"
    assert result.findings[0].code == code
    assert result.headline.startswith("wrong clipping: ") != (code == "clip-raised")


def test_a_clip_that_raises_is_told_once_with_its_line_and_its_traceback():
    def inner(gradients):
        raise KeyError("scale; or not")

    with pytest.raises(GradCheckError) as caught:
        assert_clipping(lambda gradients: inner(gradients), max_norm=1.0)
    line = inner.__code__.co_firstlineno + 1
    result = caught.value.result
    assert "raised for 0.5 of the threshold" in result.headline
    assert f"KeyError: 'scale, or not' (test_clipping.py:{line})" in result.findings[0].message
    assert [f.code for f in result.findings] == ["clip-raised"]
    assert not result.evidence
    assert isinstance(caught.value.__cause__, KeyError)


def test_no_clip_is_refused():
    with pytest.raises(UsageError, match="clip must be a function"):
        check_clipping(None, max_norm=1.0)


def test_factors_of_the_formula():
    def message(factor):
        return check_clipping(by_norm(factor), max_norm=0.5).findings[0].message

    assert "threshold out" in message(lambda n: 1 / n if n > 0.5 else 1.0)
    assert "to zero" in message(lambda n: 0.0 if n > 0.5 else 1.0)
    assert "norm / threshold" in message(lambda n: max(1.0, n / 0.5))
    assert "square root" in message(lambda n: min(1.0, 0.5 / n**0.5) if n > 0 else 1.0)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (lambda g: [np.minimum(x, 1) for x in g], "clips from above only"),
        (lambda g: [np.maximum(x, -1) for x in g], "clips from below only"),
        (lambda g: [np.where(abs(x) > 1, 0, x) for x in g], "sets what is too large to zero"),
        (lambda g: g, "leaves a gradient above"),
        (right, "scales all gradients"),
    ],
)
def test_wrong_values(clip, message):
    assert message in check_clipping(clip, max_value=1.0).findings[0].message


def test_maximum_without_absolute_value():
    def clip(gradients):
        size = max(float(np.max(g)) for g in gradients)
        return [g * (1 / size if size > 1 else 1.0) for g in gradients]

    assert check_clipping(clip, max_norm=1.0, norm_type=math.inf).verdict == "fail"


def test_clipping_after_the_sum_is_not_per_example():
    clip = lambda g: right([x.sum(axis=0) for x in g])  # noqa: E731  # one line says all
    assert found(check_clipping(clip, max_norm=1.0, per="example")) == {"clip-per-example"}


def test_a_threshold_that_is_ignored():
    assert "clip-threshold" in found(check_clipping(lambda g, max_norm: right(g), max_norm=1.0))


def test_half_precision_warns_unless_it_is_asked_for():
    def clip(gradients):
        size = np.sqrt(np.array(sum((g * g).sum() for g in gradients), dtype=gradients[0].dtype))
        return [g * (1 / size if size > 1 else 1) for g in gradients]

    open_ = check_clipping(clip, max_norm=1.0)
    assert open_.verdict == "pass"
    assert [f.code for f in open_.findings] == ["clip-overflow"]
    asked = check_clipping(clip, max_norm=1.0, dtypes=["float64", "float16"])
    assert asked.verdict == "fail"


# --- inf and nan ----------------------------------------------------------------------------------


def policed(policy):
    def clip(gradients):
        if np.isfinite(norm(gradients)):
            return right(gradients)
        if policy == "raise":
            raise FloatingPointError("not finite")
        if policy == "zero":
            return [np.zeros_like(g) for g in gradients]
        return gradients

    return clip


@pytest.mark.parametrize("claimed", ["raise", "zero", "skip"])
@pytest.mark.parametrize("policy", ["raise", "zero", "skip"])
def test_policies(policy, claimed):
    result = check_clipping(policed(policy), max_norm=1.0, nonfinite=claimed)
    assert (result.verdict == "pass") == (policy == claimed)
    assert policy == claimed or found(result) == {"clip-nonfinite"}


def test_what_is_not_claimed_is_allowed_but_zeros_are_told():
    results = {p: check_clipping(policed(p), max_norm=1.0) for p in ("raise", "zero", "skip")}
    assert {r.verdict for r in results.values()} == {"pass"}
    assert {f.code for f in results["zero"].findings if f.severity == "warn"} == {"clip-nonfinite"}


# --- nothing to see -------------------------------------------------------------------------------


def test_one_tensor_is_vacuous():
    result = check_clipping(lambda g: right(g), max_norm=1.0, params=[np.ones(5)])
    assert result.verdict == "vacuous"
    assert result.findings[0].code == "clip-one-tensor"


def test_a_threshold_that_nothing_reaches_is_vacuous():
    result = check_clipping(lambda g: g, max_norm=math.inf)
    assert result.verdict == "vacuous"
    assert result.findings[0].code == "clip-never"


def test_recorded_norms():
    def codes(norms):
        return [f.code for f in check_clipping(right, max_norm=1.0, norms=norms).findings]

    assert "clip-never-bites" in codes([0.1, 0.2])
    assert "clip-always-bites" in codes([2.0, 3.0])
    assert "clip-share" in codes([0.5, 3.0])


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"max_norm": 1.0, "max_value": 1.0},
        {"max_norm": 0.0},
        {"max_norm": "much"},
        {"max_norm": 1.0, "per": "layer"},
        {"max_norm": 1.0, "nonfinite": "ignore"},
        {"max_norm": 1.0, "norms": []},
        {"max_norm": 1.0, "backend": "mxnet"},
        {"max_value": 1.0, "per": "tensor"},
        {"max_norm": 1.0, "params": ["a"]},
    ],
)
def test_misuse_is_refused(claims):
    with pytest.raises(UsageError):
        check_clipping(right, **claims)


def test_a_failure_tells_what_where_and_what_to_try():
    with pytest.raises(GradCheckError) as caught:
        assert_clipping(WRONG["clip-per-tensor"], max_norm=1.0, label="clip", seed=0)
    lines = str(caught.value).splitlines()
    assert lines[0] == "wrong clipping: clip clips each tensor by itself, so the direction changes"
    assert lines[1].split() == ["gradients", "before", "threshold", "after", "factor", "cosine"]
    assert any(line.startswith("try: take one norm over all gradients") for line in lines)
