"""The gradient that an optimizer should receive: of the whole window, unscaled, clipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_gradcheck.backends.seen import Clip
from pytest_gradcheck.checks.steps import weighing
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run, doubted
from pytest_gradcheck.checks.steps.windows import Grads, Window
from pytest_gradcheck.numerics import clipping

TORCH_FLOOR = 1e-6
NEAR = 1e-2  # of a norm that is given in the precision of its gradients


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """The gradient of a window.

    Args:
        raw: Before clipping.
        clipped: After.
        threshold: What it was clipped to, NaN where it was not.
        norm: Norm of ``raw``, over what the optimizers hold.
        bites: Whether clipping changed anything.
        shares: Share of each micro-batch in the whole.
        is_guess: Whether nothing but their rows tells these shares, of batches of other shapes.
        inner: What the optimizer itself makes of it, where it is the optimizer that clips, so that
            ``clipped`` is ``raw``; None where it does not.
        doubts: For each tensor the norm by which ``clipped`` may be off, where fresh gradients are
            at a kink, each side of which has one of its own; empty where none is.
    """

    raw: Grads
    clipped: Grads
    threshold: float
    norm: float
    bites: bool
    shares: tuple[float, ...]
    is_guess: bool = False
    inner: Grads | None = None
    doubts: tuple[float, ...] = ()

    def doubt(self, i: int) -> float:
        """The doubt in one tensor."""
        return self.doubts[i] if self.doubts else 0.0


def combined(micro: Sequence[Grads], weights: Sequence[float]) -> list[np.ndarray | None]:
    """A weighted sum of gradients; None for what has none in any of them."""
    found: list[np.ndarray | None] = []
    for column in zip(*micro, strict=True):
        parts = [
            g if w == 1 else w * g for w, g in zip(weights, column, strict=True) if g is not None
        ]
        found.append(np.sum(parts, axis=0) if len(parts) > 1 else next(iter(parts), None))
    return found


def flat(grads: Grads, like: Sequence[np.ndarray]) -> np.ndarray:
    """All elements in one row, zeros for what is None."""
    return clipping.flat(
        [np.zeros_like(x) if g is None else g for g, x in zip(grads, like, strict=True)]
    )


def expected(run: Run, window: Window, contract: Contract) -> Expected:
    """The gradient that should arrive at the end of a window."""
    shares = weighing.shares(run, window, contract)
    raw = combined(window.micro, shares)
    if len(window.batches) == 1 or contract.weights != "samples":
        return finished(run, window, contract, raw, shares)
    whole = _whole(run, window)
    if whole is not None:
        return finished(run, window, contract, *whole)
    known = weighing.known(run, window)
    if known is not None:
        return finished(run, window, contract, combined(window.micro, known), known)
    found = finished(run, window, contract, raw, shares)
    return replace(found, is_guess=run.loop.differ(window.batches))


def finished(
    run: Run, window: Window, contract: Contract, raw: Grads, shares: tuple[float, ...]
) -> Expected:
    """A gradient with its clipping: as claimed, else as it was seen to be asked for."""
    found = _finished(run, window, contract, raw, shares)
    if not getattr(run.loop, "kinks", {}):  # which are those of differences
        return found
    return replace(found, doubts=_doubts(run, window, contract, found))


def _doubts(run: Run, window: Window, contract: Contract, found: Expected) -> tuple[float, ...]:
    """The doubt in each tensor of a gradient, and what it makes of a norm that clips."""
    columns = zip(*window.micro, strict=True)
    pairs = zip(found.raw, columns, strict=True)
    each = [
        doubted(run, g)
        or sum(w * doubted(run, x) for w, x in zip(found.shares, column, strict=False))
        for g, column in pairs
    ]
    whole = math.hypot(*each)
    # A clip by value takes no two points further apart than they are.
    if not whole or not math.isfinite(found.threshold) or contract.max_value is not None:
        return tuple(each) if whole else ()
    sizes = [0.0 if g is None else run.sizes.of(g) for g in found.raw]
    left = norm_of(run, found.clipped, 2.0) / max(norm_of(run, found.raw, 2.0), 1e-300)
    is_near = found.norm + whole > found.threshold  # it may clip, and by another factor
    turned = whole / max(found.norm, 1e-300) if is_near else 0.0
    return tuple(left * (d + turned * size) for d, size in zip(each, sizes, strict=True))


def _finished(
    run: Run, window: Window, contract: Contract, raw: Grads, shares: tuple[float, ...]
) -> Expected:
    if contract.max_norm is not None or contract.max_value is not None or not window.clips:
        threshold, is_value = _claimed(contract)
        given = run.clipping or _given(run, window)
        found = clipped(run, raw, threshold, is_value, contract.norm_type, shares, given)
        if not run.clipping:
            return found
        return replace(found, clipped=found.raw, inner=found.clipped, bites=False)
    last = window.clips[-1]
    found = clipped(run, raw, last.threshold, last.is_value, last.order, shares)
    cut = list(raw)
    for clip in window.clips:
        parts = [g if i in clip.places else None for i, g in enumerate(cut)]
        given = set(clip.places)
        small = clipped(run, parts, clip.threshold, clip.is_value, clip.order, (), given).clipped
        if not math.isnan(clip.size):
            size = _given_norm(run, clip, parts, raw)
            factor = min(1.0, clip.threshold / (size + TORCH_FLOOR))
            small = [None if g is None else g * factor for g in parts]
        cut = [
            b if i in clip.places else a for i, (a, b) in enumerate(zip(cut, small, strict=True))
        ]
    size = norm_of(run, raw, 2.0)
    return replace(found, clipped=cut, bites=norm_of(run, cut, 2.0) < size)


def _given(run: Run, window: Window) -> set[int] | None:
    """What the clips that were seen were given, if that is all that optimizers hold, and more."""
    given = {i for clip in window.clips for i in clip.places}
    held = {i for i, p in enumerate(run.loop.parameters) if p.owners}
    return given if held < given else None


def _given_norm(run: Run, clip: Clip, parts: Grads, raw: Grads) -> float:
    """The norm that a clip was given, if it is one of its gradients or of all; else that of all."""
    whole = set(range(len(raw)))
    for grads, counted in ((parts, None), (raw, None), (parts, whole)):
        for order in (2.0, 1.0, math.inf):
            size = norm_of(run, grads, order, counted)
            if abs(clip.size - size) <= NEAR * size:
                return clip.size
    return norm_of(run, raw, 2.0)


def _whole(run: Run, window: Window) -> tuple[Grads, tuple[float, ...]] | None:
    """The gradient of all batches as one, where the loss is a weighted mean over them."""
    grads = weighing.of_joined(run, window, lambda *given: run.loop.gradient(*given)[1])
    weights = None if grads is None else weighing.parts(window.micro, grads, window.at)
    return None if weights is None or grads is None else (list(grads), weights)


def _claimed(contract: Contract) -> tuple[float, bool]:
    """Threshold and whether it is one of values."""
    if contract.max_value is not None:
        return contract.max_value, True
    return (math.nan if contract.max_norm is None else contract.max_norm), False


def norm_of(run: Run, raw: Grads, order: float, counted: set[int] | None = None) -> float:
    """The norm of what optimizers hold, or of the tensors of some numbers."""
    pairs = enumerate(zip(raw, run.loop.parameters, strict=True))
    mine = [
        g
        for i, (g, p) in pairs
        if g is not None and (p.owners != 0 if counted is None else i in counted)
    ]
    return run.sizes.whole(mine) if order == 2 else clipping.norm(mine, order)


def clipped(
    run: Run,
    raw: Grads,
    threshold: float,
    is_value: bool,
    norm_type: float,
    shares: tuple[float, ...],
    counted: set[int] | None = None,
) -> Expected:
    """A gradient with its clipping, by the norm of what is held or of the tensors of numbers."""
    norm = norm_of(run, raw, norm_type, counted)
    if not math.isfinite(threshold):
        return Expected(raw, raw, threshold, norm, False, shares)
    if is_value:
        cut = [None if g is None else np.clip(g, -threshold, threshold) for g in raw]
        return Expected(raw, cut, threshold, norm, norm > threshold, shares)
    factor = min(1.0, threshold / (norm + TORCH_FLOOR)) if norm > threshold else 1.0
    cut = [None if g is None else g * factor for g in raw]
    return Expected(raw, cut, threshold, norm, norm > threshold, shares)
