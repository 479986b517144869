"""A tolerance: what is within it passes, what is beyond it fails, and neither is left undecided."""

from types import SimpleNamespace

import numpy as np
import pytest

from pytest_gradcheck import check_gradient
from pytest_gradcheck.checks.demand import demand
from pytest_gradcheck.limits import Limits

TOLERANCES = [1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0]


def checked(error, tolerance, size=100, count=1, seed=0, **limits):
    """The result on sines whose gradients are off by a share of their norms, in any direction."""
    draw = np.random.default_rng(seed)
    xs = [draw.normal(size=size) for _ in range(count)]
    ways = [draw.normal(size=size) for _ in range(count)]

    def grad(*xs):
        right = [np.cos(x) for x in xs]
        return tuple(
            g + error * np.linalg.norm(g) * way / np.linalg.norm(way)
            for g, way in zip(right, ways, strict=True)
        )

    def f(*xs):
        return sum(np.sin(x).sum() for x in xs)

    return check_gradient(f, *xs, grad=grad, tolerance=tolerance, seed=seed, **limits)


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize(("size", "count"), [(1, 1), (100, 1), (20, 3)])
def test_a_right_gradient_passes_with_any_tolerance_at_no_more_cost(tolerance, size, count):
    result = checked(0.0, tolerance, size, count)
    assert result.verdict == "pass", result.headline
    usual = checked(0.0, 1e-8, size, count)
    assert result.context.evaluations <= usual.context.evaluations
    assert max(row[1] for row in result.table("resolution").rows) <= max(tolerance, 0.01)


@pytest.mark.parametrize("tolerance", TOLERANCES[:5])
@pytest.mark.parametrize(("size", "count"), [(1, 1), (100, 1), (20, 3)])
def test_an_error_within_it_passes(tolerance, size, count):
    for seed in range(8):
        result = checked(0.95 * tolerance, tolerance, size, count, seed)
        assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("tolerance", TOLERANCES[:5])
def test_a_single_number_fails_just_beyond_it(tolerance):
    for seed in range(8):
        assert checked(1.5 * tolerance, tolerance, 1, 1, seed).verdict == "fail"


@pytest.mark.parametrize("tolerance", TOLERANCES[:4])
@pytest.mark.parametrize(("size", "count"), [(100, 1), (20, 3)])
def test_many_numbers_fail_at_a_few_times_of_it(tolerance, size, count):
    found = [checked(20 * tolerance, tolerance, size, count, seed) for seed in range(8)]
    assert [result.verdict for result in found].count("fail") >= 7


@pytest.mark.parametrize(("tolerance", "asked"), [(1e-8, 0.01), (5e-3, 0.01), (0.1, 0.1)])
def test_differences_are_asked_to_show_what_a_tolerance_does_not_accept(tolerance, asked):
    plan = SimpleNamespace(claimed_in="float64", probe=SimpleNamespace(precision="float64"))
    limits = Limits("gradcheck").narrowed("call", "tolerance=", {"tolerance": tolerance})
    assert demand(limits, plan).resolution == asked


def test_a_large_tolerance_is_no_noise():
    result = checked(0.0, 0.9)
    assert result.verdict == "pass"
    assert not any(finding.code == "below-noise" for finding in result.findings)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rough", [1e-6, 1e-5, 1e-4])
def test_a_solver_in_the_backward_passes_with_the_tolerance_that_is_advised(rough, seed):
    """Its steps follow the cotangent, so that it is linear only up to its error."""
    draw = np.random.default_rng(seed)
    x, matrix = draw.normal(size=6), draw.normal(size=(6, 6))

    def vjp(w, x):
        steps = rough * np.sin(1e3 * np.add.outer(np.arange(6.0), w)).sum(1) / 6
        return np.linalg.norm(w) * steps + matrix.T @ w * np.cos(x)

    def f(x):
        return matrix @ np.sin(x)

    result = check_gradient(f, x, vjp=vjp, seed=seed)
    assert result.verdict == "fail"
    told, _, tolerance = result.advice[0].partition(": tolerance=")
    assert told.startswith("if so small an error is meant")
    assert check_gradient(f, x, vjp=vjp, seed=seed, tolerance=float(tolerance)).verdict == "pass"
