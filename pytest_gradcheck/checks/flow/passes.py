"""Passes over several initialisations, and what they say together about each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_gradcheck.backends.layers import Kind, Layer, Parameter, Pass
from pytest_gradcheck.backends.probes import Probe
from pytest_gradcheck.checks.flow.branches import Branch, base, branches, bypassed
from pytest_gradcheck.checks.flow.flows import in_squares, log_flow, power
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import depth

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST = 20  # initialisations
MORE = 5  # added at a time while something is open
KEPT = 3  # initialisations that are kept for interventions


@dataclass(frozen=True, slots=True)
class Grouped:
    """A layer over all its calls and all passes.

    Args:
        name: Path without a number of a call.
        kind: As that of its calls.
        op: Operation.
        width: Units.
        index: Number among its kind.
        flows: One for each pass; calls add up in squares, as gradients of one weight do on average.
        activations: Sizes of outputs, likewise.
        given: Sizes of what an operation is given, likewise.
        gradients: Sizes of gradients, likewise.
        dead: Shares of dead units, one for each pass.
        saturated: Shares of saturated outputs.
    """

    name: str
    kind: Kind
    op: str
    width: int
    index: int
    flows: tuple[float, ...]
    activations: tuple[float, ...]
    given: tuple[float, ...]
    gradients: tuple[float, ...]
    dead: tuple[float, ...]
    saturated: tuple[float, ...]


@dataclass(eq=False)
class Passes:
    """The passes so far.

    Args:
        probe: What is measured.
        seen: One pass for each initialisation.
        states: The first initialisations, kept for interventions.
        is_single: Whether there is one realisation only.
        is_constant: Whether that is so because every draw gives the same parameters.
        lost: The first initialisation whose loss or gradient is not finite.
    """

    probe: Probe
    seen: list[Pass] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    is_single: bool = False
    seed: int = 0
    is_constant: bool = False
    lost: Any = None

    def add(self, count: int) -> None:
        """Draw and measure more initialisations; one alone where ``make`` gives all alike.

        Raises:
            UsageError: A list begins with the same record twice.
        """
        left = self.probe.most - len(self.seen) if self.probe.most else count
        for _ in range(1 if self.is_single else min(count, left)):
            state = self.probe.draw(self.seed + len(self.seen))
            is_again = len(self.seen) == 1 and self.probe.same(self.states[0], state)
            if is_again and self.probe.most:
                raise UsageError(
                    f"{self.probe.replicates} gives the same gradients twice; give one record for "
                    f"each initialisation"
                )
            if is_again:
                self.is_single = self.is_constant = True
                return
            if len(self.states) < KEPT:
                self.states.append(state)
            self.seen.append(self.probe.measure(state))
            if self.lost is None and not self.seen[-1].is_finite:
                self.lost = state

    @property
    def finite(self) -> list[Pass]:
        """The passes whose loss and gradients are finite."""
        return [one for one in self.seen if one.is_finite]


def grouped(passes: Sequence[Pass]) -> tuple[Grouped, ...]:
    """The layers that every pass has, in the order of the first; calls of one put together."""
    if not passes:
        return ()
    tables = [_calls(one) for one in passes]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return tuple(_group(name, [table[name] for table in tables]) for name in names)


def _calls(one: Pass) -> dict[str, list[Layer]]:
    table: dict[str, list[Layer]] = {}
    for layer in one.layers:
        table.setdefault(base(layer.name), []).append(layer)
    return table


def _group(name: str, calls: list[list[Layer]]) -> Grouped:
    first = calls[0][0]
    return Grouped(
        name=name,
        kind=first.kind,
        op=first.op,
        width=first.width,
        index=first.index,
        flows=tuple(power(in_squares(list(map(log_flow, one)))) for one in calls),
        activations=tuple(_mean([y.activation for y in one]) for one in calls),
        given=tuple(_mean([y.given for y in one]) for one in calls),
        gradients=tuple(_together([y.gradient for y in one]) for one in calls),
        dead=tuple(_mean([y.dead for y in one]) for one in calls),
        saturated=tuple(_mean([y.saturated for y in one]) for one in calls),
    )


def _together(values: list[float]) -> float:
    """Root of the sum of squares of what is known; NaN where nothing is."""
    known = [v for v in values if not math.isnan(v)]
    return math.hypot(*known) if known else math.nan


def _mean(values: list[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else math.nan


@dataclass(frozen=True, slots=True)
class Statistics:
    """What finite passes say together.

    Args:
        layers: Layer by layer.
        branches: From each beginning to its ends.
        excess: Log10 of the loss over that of a zero answer, where both are positive.
        bypassed: Rectifiers that another path goes round.
        dead_networks: Passes in which no gradient arrives at some layer.
        dead_risk: Probability of a dead network as the dead units predict it.
    """

    layers: tuple[Grouped, ...]
    branches: tuple[Branch, ...]
    excess: tuple[float, ...]
    bypassed: frozenset[str]
    dead_networks: int
    dead_risk: float

    @property
    def worst(self) -> Branch | None:
        """The branch whose flow changes most from end to end."""
        known = [b for b in self.branches if not math.isnan(b.attenuation.mean)]
        return max(known or self.branches, key=lambda b: abs(b.attenuation.mean), default=None)

    @property
    def attenuations(self) -> tuple[float, ...]:
        """Log10 of the flow at the first layers of that branch over the last, one a pass."""
        return self.worst.attenuations if self.worst is not None else ()

    @property
    def mean(self) -> float:
        """Their mean; NaN where no branch shows any."""
        return self.worst.attenuation.mean if self.worst is not None else math.nan

    @property
    def growth(self) -> float:
        """Factor per layer in that branch."""
        worst = self.worst
        if worst is None or not math.isfinite(self.mean):
            return math.nan
        return depth.growth(self.mean, worst.depth)

    def of(self, names: Sequence[str]) -> tuple[Grouped, ...]:
        """The layers of these names."""
        table = {y.name: y for y in self.layers}
        return tuple(table[name] for name in names)


def statistics(passes: Sequence[Pass]) -> Statistics:
    """The statistics of finite passes."""
    layers = grouped(passes)
    beside = frozenset().union(*map(bypassed, passes))
    rectified = [y for y in layers if y.dead and not math.isnan(y.dead[0])]
    rectified = [y for y in rectified if y.name not in beside]
    return Statistics(
        layers=layers,
        branches=branches(passes),
        excess=_excess(passes),
        bypassed=beside,
        dead_networks=sum(_is_dead(one, beside) for one in passes),
        dead_risk=depth.dead_network(
            list(zip(*(y.dead for y in rectified), strict=True)), [y.width for y in rectified]
        ),
    )


def _excess(passes: Sequence[Pass]) -> tuple[float, ...]:
    pairs = [(one.loss, plain_loss(one)) for one in passes]
    return tuple(depth.log_ratio(a, b) for a, b in pairs if a is not None and a > 0 and b > 0)


def plain_loss(one: Pass) -> float:
    """The loss of a model that knows nothing: even odds, else an answer of zero; NaN if unknown."""
    if one.constant is not None and not math.isnan(one.constant.even):
        return one.constant.even
    return one.plain_loss


def _is_dead(one: Pass, beside: frozenset[str]) -> bool:
    """Whether a rectifier that all goes through is off for every sample, with nothing before it."""
    off = [n for n, y in enumerate(one.layers) if y.dead == 1.0 and base(y.name) not in beside]
    return bool(off) and any(y.gradient == 0 for y in one.layers[: off[0] + 1])


def constant(parameters: Sequence[Sequence[Parameter]], wanted: object) -> tuple[str, ...]:
    """Names of parameters for which a test holds in every pass."""
    names = [p.name for p in parameters[0]] if parameters else []
    tables = [{p.name: p for p in one} for one in parameters]
    test: Any = wanted
    return tuple(n for n in names if all(n in t and test(t[n]) for t in tables))
