"""A conformance kit: whoever writes a backend runs it against theirs.

Example, in a test suite::

    from pytest_gradcheck.testing import BackendCase, LAWS, check_backend

    @pytest.mark.parametrize("law", LAWS)
    def test_backend(law):
        check_backend(BackendCase(MINE, array=mine.asarray), law)

A backend that shows the flow of gradients passes the kit of ``pytest_gradcheck.testing_flow`` too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradcheck.backends import Array, Backend

_VALUES = [[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]]
_OTHER = [[1.0, 2.0, -0.5], [0.25, -1.0, 3.0]]


@dataclass(frozen=True)
class BackendCase:
    """A backend and how to make its arrays.

    Args:
        backend: The backend under test.
        array: Makes an array of the default precision from nested lists of floats.
        differentiates: Whether the framework has derivatives of its own.
        dtypes: Precisions that ``convert`` must offer.
    """

    backend: Backend
    array: Callable[[list[list[float]]], Array]
    differentiates: bool = True
    dtypes: tuple[str, ...] = ("float32", "float64")


def check_backend(case: BackendCase, law: str) -> None:
    """Check one law.

    Args:
        case: The backend.
        law: One of ``LAWS``.

    Raises:
        AssertionError: The backend breaks the law; the message says how.
    """
    _LAWS[law](case)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _close(a: float, b: float, what: str) -> None:
    _require(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6), f"{what}: {a} is not {b}")


def _arrays(case: BackendCase) -> tuple[Array, Array]:
    with case.backend.guard():
        return case.array(_VALUES), case.array(_OTHER)


def _flatten_round_trip(case: BackendCase) -> None:
    x, y = _arrays(case)
    nested = {"a": x, "b": [y, 3, "text", None], "c": (x,)}
    flat = case.backend.flatten(nested)
    paths = [leaf.path for leaf in flat.leaves if leaf.dtype]
    _require(paths == ["a", "b.0", "c.0"], f"flatten: paths of arrays are {paths}")
    rebuilt = flat.rebuild([leaf.value for leaf in flat.leaves])
    _require(rebuilt["b"][1:] == [3, "text", None], "flatten: other values do not pass through")
    _require(rebuilt["a"] is x and rebuilt["c"][0] is x, "flatten: arrays do not come back")
    _require(flat.leaves[0].shape == (2, 3), f"flatten: shape is {flat.leaves[0].shape}")


def _inner_is_bilinear(case: BackendCase) -> None:
    x, y = _arrays(case)
    with case.backend.guard():
        inner = case.backend.inner
        expected = float(np.vdot(np.array(_VALUES), np.array(_OTHER)))
        _close(inner(x, y), expected, "inner(x, y)")
        _close(inner(x * 2.0 + y, y), 2 * inner(x, y) + inner(y, y), "inner(2 x + y, y)")
        _close(inner(abs(x), abs(x)), inner(x, x), "inner(|x|, |x|)")
        _close(inner(x - y, x), inner(x, x) - inner(y, x), "inner(x - y, x)")


def _moved_is_a_sum(case: BackendCase) -> None:
    x, v = _arrays(case)
    with case.backend.guard():
        inner, shifted = case.backend.inner, case.backend.moved(x, v, 0.25)
        gap = shifted - (x + v * 0.25)
        _require(inner(gap, gap) <= 1e-12 * inner(x, x), "moved: it is not x + step v")
        before = inner(x, x)
        shifted *= 0
        _require(inner(x, x) == before, "moved: it shares memory with x")


def _normal_is_private_and_repeatable(case: BackendCase) -> None:
    x, _ = _arrays(case)
    with case.backend.guard():
        before = random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]
        inner = case.backend.inner
        a, b, c = (case.backend.normal(x, seed) for seed in (1, 1, 2))
        _require(inner(a - b, a - b) == 0, "normal: the same seed gives other numbers")
        _require(inner(a - c, a - c) > 0, "normal: another seed gives the same numbers")
        wide = case.backend.normal(case.array([[0.0] * 200] * 50), 3)
        _require(abs(inner(wide, wide) / 10_000 - 1) < 0.1, "normal: the variance is not 1")
        after = random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]
    _require(before == after, "normal: a global generator moved")


def _convert_copies(case: BackendCase) -> None:
    x, _ = _arrays(case)
    for dtype in case.dtypes:
        with case.backend.guard():
            copy = case.backend.convert(x, dtype)
            leaf = case.backend.flatten(copy).leaves[0]
            _require(leaf.dtype == dtype, f"convert: asked {dtype}, got {leaf.dtype}")
            _require(copy is not x, "convert: the same object came back")
            _close(case.backend.inner(copy, copy), case.backend.inner(x, x), "convert: values")


def _cube(x: Sequence[Array]) -> Any:
    return {"cube": x[0] * x[0] * x[0] + x[1] * 2.0}


def _evaluate_gives_values(case: BackendCase) -> None:
    x, y = _arrays(case)
    expected = np.array(_VALUES) ** 3 + 2 * np.array(_OTHER)
    for run in (case.backend.evaluate, case.backend.forward):
        with case.backend.guard():
            flat = run(_cube, [x, y])
            _require(flat.leaves[0].path == "cube", f"evaluate: path {flat.leaves[0].path!r}")
            value = flat.leaves[0].value
            _close(case.backend.inner(value, x), float(np.vdot(expected, np.array(_VALUES))), "f")


def _vjp_and_jvp_are_transposed(case: BackendCase) -> None:
    if not case.differentiates:
        return
    x, y = _arrays(case)
    backend = case.backend
    with backend.guard():
        w, v = backend.normal(x, 1), [backend.normal(x, 2), backend.normal(y, 3)]
        gradient = backend.vjp(_cube, [x, y], [w])
        moved = backend.jvp(_cube, [x, y], v)
        pulled = sum(backend.inner(g, d) for g, d in zip(gradient, v, strict=True))
        _close(pulled, backend.inner(w, moved[0]), "<vjp(w), v> against <w, jvp(v)>")
        _close(backend.inner(gradient[0], v[0]), backend.inner(w * x * x * 3.0, v[0]), "vjp")


def _guard_restores(case: BackendCase) -> None:
    random.seed(5)
    np.random.seed(5)
    before = random.getstate()
    try:
        with case.backend.guard() as guard:
            guard.rewind()
            random.random()
            np.random.random()
            raise KeyError("from the user's code")
    except KeyError:
        pass
    _require(random.getstate() == before, "guard: Python's generator was not restored")
    expected = np.random.RandomState(5).random()
    _require(np.random.random() == expected, "guard: NumPy's generator was not restored")


_LAWS: dict[str, Callable[[BackendCase], None]] = {
    "flatten-round-trip": _flatten_round_trip,
    "inner-is-bilinear": _inner_is_bilinear,
    "moved-is-a-sum": _moved_is_a_sum,
    "normal-is-private-and-repeatable": _normal_is_private_and_repeatable,
    "convert-copies": _convert_copies,
    "evaluate-gives-values": _evaluate_gives_values,
    "vjp-and-jvp-are-transposed": _vjp_and_jvp_are_transposed,
    "guard-restores": _guard_restores,
}

LAWS = tuple(_LAWS)
