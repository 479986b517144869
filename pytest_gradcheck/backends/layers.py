"""What one forward and backward pass shows of a model: the same record for every backend.

A layer is whatever a backend can name and whose output it can see: a module, an activation, a
product with weights. Sizes are per element (root mean square, in float64); a size is NaN where
there is nothing to measure, which for a gradient means that none arrived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pytest_gradcheck.backends import positions
from pytest_gradcheck.backends.targets import Constant

# Activations by the name of their operation: what is exactly zero where it is off, and what has a
# slope that can be read off its output (the largest slope, and the slope at output ``a``).
RECTIFIERS = frozenset({"relu", "relu6", "clamp", "threshold", "hardtanh_relu"})
SIGMOIDS = frozenset({"sigmoid", "logistic"})
TANHS = frozenset({"tanh"})
BOUNDED = SIGMOIDS | TANHS
OTHERS = frozenset(
    {"exp", "gelu", "silu", "elu", "selu", "celu", "leaky_relu", "softplus", "mish", "prelu"}
    | {"hardtanh", "hardsigmoid", "hardswish", "softsign", "log_sigmoid", "rrelu"}
)
ACTIVATIONS = RECTIFIERS | BOUNDED | OTHERS
THIRDS = ("query", "key", "value")  # of a joint weight of attention, in the usual order
LEAST = 8  # positions that tell how answers differ
FLAT = 0.01  # a unit is saturated where its slope is under this share of the largest slope

Kind = Literal["linear", "activation", "other"]
Change = tuple[str, int]  # what to change in a pass, and at which operation (-1: at all)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One output in one pass.

    Args:
        name: Path, with ``#2`` for the second call of a shared layer.
        kind: Whether it multiplies by weights, is an activation, or is anything else.
        op: Name of the operation or of the module's class.
        size, width: Number of elements of the output, and of units: extent of the feature axis,
            zero where it is not known.
        activation, gradient: Size of the output, and of the gradient with respect to it.
        dead: Share of units that are off for every sample; NaN unless they can be.
        saturated: Share of units whose mean slope is under 1 % of the largest; NaN unless bounded.
        index: Number among the operations of its kind that a change can be made at.
        given: Size of what an operation is given; NaN where that is not known.
        parents: Positions of the layers that feed it; None where not known: the one before.
        is_joined: Whether something without a gradient is added to what these put out, or stands
            beside it.
        match: Flow of all positions, each by itself, over that of gradient and size as a whole.
    """

    name: str
    kind: Kind = "other"
    op: str = ""
    size: int = 1
    width: int = 1
    activation: float = math.nan
    gradient: float = math.nan
    dead: float = math.nan
    saturated: float = math.nan
    index: int = -1
    given: float = math.nan
    parents: tuple[int, ...] | None = None
    is_joined: bool = False
    match: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter in one pass.

    Args:
        name, shape: Path, and its shape.
        value: Size of its values.
        gradient: Size of its gradient; NaN where it has none.
        trainable: Whether its owner lets it move.
        symmetric: Whether its rows, and the rows of its gradient, are copies of one another.
        update: Norm of an optimizer's step over the norm of the values; NaN without one.
        silent: Parts (query, key, value) of a joint weight that get a gradient of zero, others not.
        uniform: Whether it is a vector of one number, several times.
    """

    name: str
    shape: tuple[int, ...] = ()
    value: float = math.nan
    gradient: float = math.nan
    trainable: bool = True
    symmetric: bool = False
    update: float = math.nan
    silent: tuple[str, ...] = ()
    uniform: bool = False


class Turn(NamedTuple):
    """What a layer puts out in one turn of a loop: its name, number of the turn from 1, size."""

    name: str
    number: int
    activation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward and backward pass.

    Args:
        loss: Value of the loss; None where it is not known.
        layers: In the order in which data flows.
        parameters: In the order of their owner.
        plain_loss: The loss of a model that answers zero; NaN where that cannot be had.
        constant: What the best constant answer costs; None where that is not certain.
        source: Size of what the first product with weights is given; NaN where that is not known.
        is_learned: Whether parameters have a part in that, as those of a table.
        fades: Log10 of the gradient that reaches the first time step over the last, by layer name.
        turns: What layers put out in loops that have no gradient.
        contrast: Spread of the answers over the samples, over their size; NaN where not known.
        is_half: Whether the gradient of any value on the way is kept in float16.
    """

    loss: float | None
    layers: tuple[Layer, ...]
    parameters: tuple[Parameter, ...] = ()
    plain_loss: float = math.nan
    constant: Constant | None = None
    source: float = math.nan
    is_learned: bool = False
    fades: tuple[tuple[str, float], ...] = ()
    turns: tuple[Turn, ...] = ()
    contrast: float = math.nan
    is_half: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients of parameters, or of layers without any, are finite."""
        seen = [p.gradient for p in self.parameters] or [y.gradient for y in self.layers]
        is_lost = self.loss is not None and not math.isfinite(self.loss)
        return not is_lost and not any(map(math.isinf, seen))

    @property
    def rows(self) -> int:
        """Positions (samples, pixels, tokens) at which the units of a layer were looked at."""
        return max((y.size // max(1, y.width) for y in self.layers), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the first value that is not finite is born.

    Args:
        where: Layer or module, empty for code outside any.
        op: Operation.
        phase: When; ``given`` where it was there before, and ``op`` says in what.
        value, reaches: ``nan`` or ``inf``; ``loss``, ``gradient`` or ``nothing``.
        place: ``file:line`` in the user's code, empty when unknown.
        turn: Of the loop that it lies in, from 1 on; zero outside any.
    """

    where: str
    op: str
    phase: Literal["forward", "backward", "given"]
    value: str
    place: str = ""
    reaches: str = "loss"
    turn: int = 0


def rms(x: np.ndarray) -> float:
    """Root mean square in float64; infinite where a value is not finite."""
    wide = np.abs(np.asarray(x)).astype(np.float64).ravel()
    if not wide.size:
        return 0.0
    top = float(wide.max())
    if not math.isfinite(top):
        return math.inf
    return top * math.sqrt(float(np.mean((wide / top) ** 2))) if top else 0.0


def contrast(x: np.ndarray) -> float:
    """Standard deviation over positions, root mean square of units, over the size; else NaN.

    Units lie on the last axis; fewer than eight positions tell nothing.
    """
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1]) if x.ndim else np.empty((0, 1))
    size = rms(rows)
    if len(rows) < LEAST or not 0 < size < math.inf:
        return math.nan
    return rms((rows / size).std(axis=0))


def dead(op: str, x: np.ndarray) -> float:
    """Share of units, on the last axis, that are zero at every position; NaN unless a rectifier."""
    if op not in RECTIFIERS or x.ndim == 0:
        return math.nan
    return float(np.mean(~np.any(x.reshape(-1, x.shape[-1]) != 0, axis=0)))


def saturated(op: str, x: np.ndarray) -> float:
    """Share of units of a sigmoid or tanh whose mean slope is nearly zero; NaN otherwise.

    Of a softmax, share of the samples whose answer is all at one place.
    """
    if op == "softmax" and x.ndim:
        return float(np.mean(1 - np.sum(x.astype(np.float64) ** 2, axis=-1) < FLAT))
    if op not in BOUNDED or x.ndim == 0:
        return math.nan
    slope = 4 * x * (1 - x) if op in SIGMOIDS else 1 - x * x
    return float(np.mean(slope.reshape(-1, x.shape[-1]).mean(axis=0) < FLAT))


def symmetric(value: np.ndarray, gradient: np.ndarray | None) -> bool:
    """Whether all rows along one of the first two axes are copies, in value and in gradient."""
    if gradient is None or value.ndim < 2 or not np.any(gradient):
        return False
    both = (value, gradient)
    return any(value.shape[axis] > 1 and all(_copies(x, axis) for x in both) for axis in (0, 1))


def silent(gradient: np.ndarray | None) -> tuple[str, ...]:
    """Thirds of a weight three times as long as wide whose gradient is zero, unless all are."""
    if gradient is None or gradient.ndim != 2 or not np.any(gradient):
        return ()
    rows = gradient if gradient.shape[0] == 3 * gradient.shape[1] else gradient.T
    if rows.shape[0] != 3 * rows.shape[1]:
        return ()
    pairs = zip(THIRDS, np.split(rows, 3), strict=True)
    return tuple(name for name, part in pairs if not np.any(part))


def _copies(x: np.ndarray, axis: int) -> bool:
    wide = np.asarray(x, dtype=np.float64)
    spread = np.abs(wide - wide.take([0], axis=axis)).max()
    return bool(spread <= 1e-5 * np.abs(wide).max())


def numbered(names: Iterable[str]) -> list[str]:
    """The names, with ``#2`` and so on where one comes again."""
    seen: dict[str, int] = {}
    told = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        told.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return told


def of_arrays(
    name: str, kind: Kind, op: str, x: np.ndarray, g: np.ndarray | None, index: int = -1
) -> Layer:
    """The record of a layer whose output and gradient are at hand; units on the last axis."""
    return Layer(
        name=name,
        kind=kind,
        op=op,
        size=int(x.size),
        width=int(x.shape[-1]) if x.ndim else 1,
        activation=rms(x),
        gradient=math.nan if g is None else rms(g),
        dead=dead(op, x),
        saturated=saturated(op, x),
        index=index,
        match=positions.match(x, g),
    )


def of_parameters(
    values: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray | None]
) -> tuple[Parameter, ...]:
    """The records of parameters whose values and gradients are at hand."""
    return tuple(
        Parameter(
            name=name,
            shape=tuple(value.shape),
            value=rms(value),
            gradient=math.nan if (g := gradients.get(name)) is None else rms(g),
            symmetric=symmetric(value, g),
            silent=silent(g),
            uniform=value.ndim == 1 and value.size > 1 and bool(np.all(value == value[0])),
        )
        for name, value in values.items()
    )
