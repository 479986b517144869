"""A conformance kit for probes: whoever shows the flow of a framework's gradients runs it.

Example, in a test suite::

    from pytest_gradcheck.testing_flow import PROBE_LAWS, ProbeCase, check_probe

    @pytest.mark.parametrize("law", PROBE_LAWS)
    def test_probe(law):
        check_probe(ProbeCase(my_probe), law)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.backends.layers import Layer, Pass
from pytest_gradcheck.backends.probes import Probe

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class ProbeCase:
    """A probe of the loss ``mean((relu(x @ one) @ two - y) ** 2)`` of two matrices.

    Args:
        probe: Makes it of ``draw(seed)``, which gives the matrices by name; a batch ``(x, y)``; and
            whether the mean over the samples is to be taken from ``x @ one``, so that each sample
            sees the others.
    """

    probe: Callable[[Callable[[int], Weights], tuple[np.ndarray, np.ndarray], bool], Probe]


def check_probe(case: ProbeCase, law: str) -> None:
    """Check one law.

    Args:
        case: What makes the probe.
        law: One of ``PROBE_LAWS``.

    Raises:
        AssertionError: The probe breaks the law; the message says how.
    """
    _PROBE_LAWS[law](case)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _close(a: float, b: float, what: str) -> None:
    _require(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6), f"{what}: {a} is not {b}")


def _draw(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = {"one": (4, 6), "two": (6, 1)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 4), (16, 1)))
    return x, y


def _seen(case: ProbeCase, factor: float = 1.0) -> Pass:
    probe = case.probe(_draw, _batch(), False)
    with probe.guard():
        return probe.measure(probe.draw(3), None, factor)


def _products(one: Pass) -> list[Layer]:
    found = [y for y in one.layers if y.kind == "linear"]
    _require(len(found) == 2, f"layers: two products with weights, not {len(found)}")
    return found


def _sizes_are_those_by_hand(case: ProbeCase) -> None:
    weights, (x, y) = _draw(3), _batch()
    z = x @ weights["one"]
    out = np.maximum(z, 0) @ weights["two"]
    g = 2 * (out - y) / len(y)
    g_z = (g @ weights["two"].T) * (z > 0)
    one, (first, last) = _seen(case), _products(_seen(case))
    for layer, value, gradient in ((first, z, g_z), (last, out, g)):
        _close(layer.activation, float(np.sqrt(np.mean(value**2))), f"activation of {layer.name}")
        _close(layer.gradient, float(np.sqrt(np.mean(gradient**2))), f"gradient of {layer.name}")
    _close(one.loss or 0.0, float(np.mean((out - y) ** 2)), "loss")
    sizes = sorted(p.gradient for p in one.parameters)
    expected = (x.T @ g_z, np.maximum(z, 0).T @ g)
    for size, theirs in zip(sizes, sorted(map(_rms, expected)), strict=True):
        _close(size, theirs, "gradient of a parameter")


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _gradients_scale_with_the_loss(case: ProbeCase) -> None:
    if case.probe(_draw, _batch(), False).can_scale:
        one, other = _products(_seen(case))[0], _products(_seen(case, 8.0))[0]
        _close(other.gradient, 8 * one.gradient, "gradient with 8 times the loss")


def _draws_differ(case: ProbeCase) -> None:
    probe = case.probe(_draw, _batch(), False)
    with probe.guard():
        a, b, c = (probe.draw(seed) for seed in (1, 1, 2))
        _require(probe.same(a, b), "draw: the same seed gives other parameters")
        _require(not probe.same(a, c), "draw: another seed gives the same parameters")


def _a_step_takes_a_tenth_away(case: ProbeCase) -> None:
    probe = case.probe(_draw, _batch(), False)
    with probe.guard():
        state = probe.draw(3)
        before, after = probe.measure(state).loss, probe.measure(probe.stepped(state)).loss
    share = 1 - (after or 0.0) / (before or 1.0)
    _require(0.05 < share < 0.15, f"stepped: {share:.0%} of the loss went, not a tenth")


def _samples_are_told_from_one_another(case: ProbeCase) -> None:
    for is_mixed in (False, True):
        probe = case.probe(_draw, _batch(), is_mixed)
        with probe.guard():
            moved = probe.strangers(probe.draw(3))
        right = moved > 1e-3 if is_mixed else moved < 1e-5
        _require(math.isnan(moved) or right, f"strangers: {moved} with mixed={is_mixed}")


def _wider_is_wider(case: ProbeCase) -> None:
    probe = case.probe(_draw, _batch(), False)
    with probe.guard():
        wide = probe.widened(2)
        widths = [12, 1] if wide is None else [y.width for y in _products(_measured(wide))]
    _require(widths == [12, 1], f"widened: widths are {widths}, not 12 and 1")


def _measured(probe: Probe) -> Pass:
    return probe.measure(probe.draw(3))


def _a_constant_costs_the_variance(case: ProbeCase) -> None:
    constant = _seen(case).constant
    if constant is not None:
        _require(constant.kind == "targets", f"constant: kind is {constant.kind}")
        _close(constant.loss, float(_batch()[1].var()), "constant: loss of the mean target")


_PROBE_LAWS: dict[str, Callable[[ProbeCase], None]] = {
    "sizes-are-those-by-hand": _sizes_are_those_by_hand,
    "gradients-scale-with-the-loss": _gradients_scale_with_the_loss,
    "draws-differ": _draws_differ,
    "a-step-takes-a-tenth-away": _a_step_takes_a_tenth_away,
    "samples-are-told-from-one-another": _samples_are_told_from_one_another,
    "wider-is-wider": _wider_is_wider,
    "a-constant-costs-the-variance": _a_constant_costs_the_variance,
}

PROBE_LAWS = tuple(_PROBE_LAWS)
