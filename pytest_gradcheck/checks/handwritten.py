"""What a hand-written derivative must not do to its arguments and to what it returned before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pytest_gradcheck.backends import Array, Flat, Variant
from pytest_gradcheck.checks.derivative import Derivative, HandGrad, HandJac, HandVjp, asked
from pytest_gradcheck.checks.probe import Probe
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.checks.projection import Cotangents, norm
from pytest_gradcheck.errors import brief

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def breaches(probe: Probe, weights: Cotangents) -> Iterator[Variant]:
    """Arguments that are written into, and a returned gradient that a later call overwrites."""
    problem, backend = probe.problem, probe.problem.backend
    point = problem.fresh()
    probe.guard.rewind()
    with backend.mode(point):
        problem.call(point)()
    changed = _changed(probe, problem.point, point)
    if changed:
        told = f"the function writes into its input {', '.join(changed)}"
        yield Variant("forward-mutates-input", "", breach=told)
    derivative = _called(probe.derivative, probe, weights)
    if derivative is None:
        return
    point, given = problem.fresh(), [None if w is None else backend.convert(w) for w in weights]
    first = derivative(point, given)
    changed = _changed(probe, problem.point, point)
    if changed:
        told = f"the derivative writes into its input {', '.join(changed)}"
        yield Variant("backward-mutates-input", "", breach=told)
    if any(_differ(backend, w, v) for w, v in zip(weights, given, strict=True)):
        yield Variant("backward-mutates-cotangent", "", breach="it writes into its cotangent")
    if isinstance(probe.derivative, HandVjp):
        yield from _layouts(derivative, problem, weights, backend.flatten(first))
    given = [None if w is None else backend.convert(w) for w in weights]
    yield from _overwritten(probe, first, lambda: derivative(_beside(probe), given))


def _called(
    derivative: Derivative, probe: Probe, weights: Cotangents
) -> Callable[[Sequence[Array], Cotangents], Any] | None:
    """The user's own derivative, of a point and cotangents."""
    problem = probe.problem
    if isinstance(derivative, HandVjp):
        vjp = derivative.vjp

        def of_vjp(point: Sequence[Array], given: Cotangents) -> Any:
            return asked(problem, vjp, probe.outputs.rebuild(given), at=point)

        return of_vjp
    if not isinstance(derivative, (HandGrad, HandJac)):
        return None
    own = derivative.grad if isinstance(derivative, HandGrad) else derivative.jac
    return lambda point, given: asked(problem, own, at=point)


def _beside(probe: Probe) -> list[Array]:
    pairs = zip(probe.problem.fresh(), probe.scales, strict=True)
    return [x * 1.0625 + scale / 16 for x, scale in pairs]


def _layouts(
    derivative: Callable[[Sequence[Array], Cotangents], Any],
    problem: Problem,
    weights: Cotangents,
    first: Flat,
) -> Iterator[Variant]:
    """Cotangents of NumPy stored in another order, and with gaps between their elements."""
    expected = [leaf.value for leaf in first.leaves if leaf.dtype]
    for what, made in (("stored in another order", np.asfortranarray), ("with gaps", _gapped)):
        given = [made(w) if isinstance(w, np.ndarray) else w for w in weights]
        what = f"for a cotangent {what}"
        if all(not isinstance(w, np.ndarray) or w.flags.c_contiguous for w in given):
            continue
        try:
            got = problem.backend.flatten(derivative(problem.fresh(), given)).leaves
        except Exception as error:  # the user's own derivative; told, not hidden
            told = f"the derivative raises {type(error).__name__} {what}: {error}"
            yield Variant("backward-layout", what, breach=brief(told, 160))
            continue
        yield Variant("backward-layout", what, expected, [x.value for x in got if x.dtype])


def _gapped(w: np.ndarray) -> np.ndarray:
    wide = np.full((*w.shape, 2), np.nan, dtype=w.dtype)
    wide[..., 0] = w
    return wide[..., 0]


def _overwritten(probe: Probe, first: Any, again: Callable[[], Any]) -> Iterator[Variant]:
    backend = probe.problem.backend
    leaves = [leaf for leaf in backend.flatten(first).leaves if leaf.dtype and leaf.shape]
    kept = [backend.convert(leaf.value) for leaf in leaves]
    try:
        again()
    except Exception:  # outside the domain, or a bug that the main check has told
        return
    if any(_differ(backend, a, leaf.value) for a, leaf in zip(kept, leaves, strict=True)):
        told = "a later call overwrites the gradient that an earlier one returned (a shared buffer)"
        yield Variant("backward-shared-buffer", "", breach=told)


def _changed(probe: Probe, before: Sequence[Array], after: Sequence[Array]) -> list[str]:
    backend = probe.problem.backend
    triples = zip(probe.problem.names, before, after, strict=True)
    return [name for name, a, b in triples if _differ(backend, a, b)]


def _differ(backend: Any, a: Array | None, b: Array | None) -> bool:
    return a is not None and b is not None and norm(backend, b - a) != 0
