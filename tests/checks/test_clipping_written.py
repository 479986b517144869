"""Clips as they are written: what they take, what they give back, and wrong calls."""

import math

import numpy as np
import pytest

from pytest_gradcheck import UsageError, check_clipping


def total(grads):
    return math.sqrt(sum(float((g**2).sum()) for g in grads))


def scaled(grads):
    scale = min(1.0, 1.0 / (total(grads) + 1e-6))
    return [g * scale for g in grads]


def in_place(grads):
    scale = min(1.0, 1.0 / (total(grads) + 1e-6))
    for g in grads:
        g *= scale


def in_place_and_norms(grads):
    sizes = [float(np.linalg.norm(g)) for g in grads]
    in_place(grads)
    return sizes


BACK = {
    "a generator": lambda grads: (g for g in scaled(grads)),
    "a map": lambda grads: map(np.asarray, scaled(grads)),
    "norm and flag": lambda grads: (scaled(grads), total(grads), total(grads) > 1),
    "a dictionary of numbers": lambda grads: (scaled(grads), {"norm": total(grads)}),
    "a flag": lambda grads: (scaled(grads), total(grads) > 1),
    "the factor": lambda grads: (scaled(grads), min(1.0, 1.0 / (total(grads) + 1e-6))),
    "a norm that is never zero": lambda grads: (
        scaled(grads),
        math.sqrt(total(grads) ** 2 + 1e-12),
    ),
    "the norm of each, in place": in_place_and_norms,
}


@pytest.mark.parametrize("clip", BACK.values(), ids=BACK)
def test_what_a_right_clip_gives_back(clip):
    result = check_clipping(clip, max_norm=1.0)
    assert result.verdict == "pass", result.headline


def test_a_wrong_norm_among_other_things_is_seen():
    result = check_clipping(lambda g: (scaled(g), 2 * total(g), True), max_norm=1.0)
    assert [f.code for f in result.findings] == ["clip-returned-norm"]


def test_a_tensor_that_is_not_given_back():
    result = check_clipping(lambda grads: [g for g in scaled(grads) if g.ndim], max_norm=1.0)
    assert result.findings[0].code == "clip-lost"
    assert "gives back 3 arrays where it got 4 gradients" in result.headline


def test_the_keys_of_what_comes_back_may_have_another_order():
    def clip(grads):
        values = dict(zip(grads, scaled(list(grads.values())), strict=True))
        return {k: values[k] for k in reversed(list(values))}

    shapes = {"w": np.ones((3, 4)), "b": np.ones(4), "a": np.ones(4)}
    assert check_clipping(clip, max_norm=1.0, params=shapes).verdict == "pass"


@pytest.mark.parametrize("name", ["theta", "maxNorm", "grad_clip", "limit"])
def test_other_names_of_a_threshold(name):
    names = {"total": total}
    exec(
        f"def clip({name}, grads):\n"
        f"    return [g * min(1.0, {name} / (total(grads) + 1e-6)) for g in grads]",
        names,
    )
    assert check_clipping(names["clip"], max_norm=1.0).verdict == "pass"


def per_example(grads, small=1e-6):
    count = len(grads[0])
    sizes = np.sqrt(sum((g.reshape(count, -1) ** 2).sum(1) for g in grads))
    scale = np.minimum(1.0, 1.0 / (sizes + small))
    return [np.einsum("b...,b->...", g, scale) / count for g in grads]


def test_what_is_added_to_the_norm_of_an_example():
    result = check_clipping(per_example, max_norm=1.0, per="example")
    assert result.verdict == "pass", result.headline
    result = check_clipping(lambda g: per_example(g, 1e-3), max_norm=1.0, per="example")
    assert result.verdict == "fail"


def each_tensor(grads):
    out = []
    for g in grads:
        sizes = np.sqrt((g.reshape(len(g), -1) ** 2).sum(1))
        out.append(np.einsum("b...,b->...", g, np.minimum(1.0, 1.0 / sizes)))
    return out


def boosted(grads):
    sizes = np.sqrt(sum((g.reshape(len(g), -1) ** 2).sum(1) for g in grads))
    return [np.einsum("b...,b->...", g, 1 / sizes) for g in grads]


@pytest.mark.parametrize(
    ("clip", "told"),
    [(each_tensor, "each tensor of an example by itself"), (boosted, "scales small examples up")],
)
def test_mistakes_per_example(clip, told):
    assert told in check_clipping(clip, max_norm=1.0, per="example").headline


def added(grads):
    return [g * min(1.0, 1.0 / (total(grads) + 0.1)) for g in grads]


def vectors_left_out(grads):
    rest = total([g for g in grads if g.ndim > 1])
    return [g * min(1.0, 1.0 / rest) if g.ndim > 1 else g for g in grads]


def in_groups(grads):
    return [*scaled(grads[:2]), *scaled(grads[2:])]


NORMS = {
    "adds 0.1 to the norm before it divides": added,
    "leaves gradients.1 and gradients.3 out, of the norm too": vectors_left_out,
    "clips the first 2 and the last 2 tensors each by themselves": in_groups,
    "turns every gradient around": lambda grads: [-g for g in scaled(grads)],
    "(between 0.5 and 1)": lambda grads: [g * np.where(g > 0, 0.5, 1.0) for g in grads],
}


@pytest.mark.parametrize("told", NORMS)
def test_mistakes_in_a_norm_are_named(told):
    result = check_clipping(NORMS[told], max_norm=1.0)
    assert result.verdict == "fail"
    assert told in result.headline


VALUES = {
    "sets what is below zero to zero": lambda g: np.clip(g, 0, 0.5),
    "gives all that it clips the same sign": lambda g: np.where(np.abs(g) > 0.5, 0.5, g),
    "its ends are mixed up": lambda g: np.clip(g, 0.5, -0.5),
    "keeps 1 where 0.5 is claimed": lambda g: np.clip(g, -1.0, 1.0),
    "leaves gradients.1 and gradients.3 out": lambda g: np.clip(g, -0.5, 0.5) if g.ndim > 1 else g,
    "where a largest value of 0.5 is claimed": lambda g: 0.5 * np.tanh(g / 0.5),
}


@pytest.mark.parametrize("told", VALUES)
def test_mistakes_in_values_are_named(told):
    result = check_clipping(lambda grads: [VALUES[told](g) for g in grads], max_value=0.5)
    assert result.verdict == "fail"
    assert told in result.headline


def maker(max_norm):
    return lambda grads: [g * min(1.0, max_norm / total(grads)) for g in grads]


def unknown_maker(most):
    return lambda grads: [g * min(1.0, most / total(grads)) for g in grads]


async def awaited(grads):
    return scaled(grads)


class Clip:
    def __call__(self, grads):
        return scaled(grads)


WRONG_CALLS = {
    "hand over what it makes": maker,
    "it makes clips, so hand over what it makes": unknown_maker,
    "a coroutine function": awaited,
    r"the class Clip: hand over what it makes, as in Clip\(": Clip,
    "takes grads, state; allowed: one argument, the gradients": lambda grads, state: grads,
    "takes no gradients as an argument of its own": lambda *grads: scaled(grads),
}


@pytest.mark.parametrize("told", WRONG_CALLS)
def test_what_is_no_clip_is_refused_with_a_way_out(told):
    with pytest.raises(UsageError, match=told):
        check_clipping(WRONG_CALLS[told], max_norm=1.0)


def test_a_clip_of_one_array_is_told_how_to_be_checked():
    def clip(grad):
        return grad / max(1.0, np.linalg.norm(grad))

    assert "give params=" in check_clipping(clip, max_norm=1.0).advice[0]
    assert check_clipping(clip, max_norm=1.0, params=np.ones((3, 4))).verdict == "vacuous"


def test_a_clip_that_cannot_take_a_number_is_told():
    def clip(grads, theta):  # as in Dive into Deep Learning
        size = math.sqrt(sum(float((g**2).sum()) for g in grads))
        if size > theta:
            for g in grads:
                g[:] *= theta / size

    result = check_clipping(clip, max_norm=1.0)
    assert result.verdict == "pass", result.headline
    told = next(f for f in result.findings if f.code == "clip-raised")
    assert told.severity == "warn"
    assert "has no axes" in told.message


def test_parameters_that_are_numbers_alone():
    result = check_clipping(scaled, max_norm=1.0, params=[np.array(1.0), np.array(2.0)])
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("count", [1, 3, True])
def test_counts_and_flags_are_no_norm(count):
    result = check_clipping(lambda grads: (scaled(grads), count), max_norm=1.0)
    assert result.verdict == "pass", result.headline


def test_what_float32_rounds_is_said():
    def clip(grads):
        factor = np.float32(1.0 / max(1.0, total(grads)))
        return [g * factor for g in grads]

    assert "is off by" in check_clipping(clip, max_norm=1.0).headline
    assert check_clipping(clip, max_norm=1.0, clip_rounding=1e-6).verdict == "pass"


def test_the_error_of_the_form_that_fits_is_told():
    def of_list(grads):
        return [g * min(1.0, 1.0 / grads[0].size()) for g in grads]

    def of_dictionary(grads):
        return {name: g / g.size() for name, g in grads.items()}

    for clip in (of_list, of_dictionary):
        headline = check_clipping(clip, max_norm=1.0).headline
        assert "'int' object is not callable" in headline


def test_an_order_in_words():
    def clip(grads):
        return [g * min(1.0, 1.0 / max(np.abs(x).max() for x in grads)) for g in grads]

    assert check_clipping(clip, max_norm=1.0, norm_type="inf").verdict == "pass"
    with pytest.raises(UsageError, match=r"norm_type='l2' is not allowed; .* 'inf' or 'rms'"):
        check_clipping(clip, max_norm=1.0, norm_type="l2")


def test_norms_that_are_not_finite():
    result = check_clipping(scaled, max_norm=1.0, norms=[0.5, math.nan, 2.0, math.inf])
    assert result.findings[-1].message == "50% of 2 recorded steps were clipped"
    with pytest.raises(UsageError, match="nothing but inf and nan"):
        check_clipping(scaled, max_norm=1.0, norms=[math.nan])
