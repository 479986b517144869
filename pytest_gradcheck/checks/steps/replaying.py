"""Updates held against an independent replay of the claimed optimizer, mistakes named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradcheck.checks.steps import held, rates
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.guesses import Suspect
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.rates import Moves
from pytest_gradcheck.checks.steps.received import LEAST, Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.optimizers import DEFAULTS, Hyper
from pytest_gradcheck.numerics.replay import Misfit, Move
from pytest_gradcheck.numerics.variants import Change, dialects, variants
from pytest_gradcheck.results import Finding


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What the replay says.

    Args:
        findings: What is wrong, or weak.
        moves: The updates of each parameter, by its number.
        name: The rule, empty where none was replayed.
        change: The convention in which it agrees.
    """

    findings: tuple[Finding, ...]
    moves: Moves
    name: str = ""
    change: Change | None = None


def judged(run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits) -> Judged:
    """Replay every update of every parameter."""
    name = contract.optimizer or run.loop.optimizer
    moves = _moves(run, pairs, contract, limits, name)
    if not moves:
        return Judged((), moves)
    if not name:
        return _by_oracle(run, pairs, limits, moves)
    for change in dialects(name, _hyper(moves)):
        wrong = rates.wrong(run, moves, name, change, limits)
        if not wrong:
            found = held.findings(run, moves, name, change)
            found += [] if found else _weak(run, moves, name, change, limits)
            return Judged(tuple(found), moves, name, change)
    wrong = rates.wrong(run, moves, name, {}, limits)
    return Judged((_accused(run, moves, name, wrong, limits),), moves, name)


def _by_oracle(run: Run, pairs: Sequence[Pair], limits: Limits, moves: Moves) -> Judged:
    """The optimizer itself, called once more, where no rule is known by name."""
    told = f"{run.loop.shown} is not replayed: its rule is not known"
    oracles = [u for p in pairs for u in p.window.updates if u.oracle]
    for number, update in enumerate(oracles, start=1):
        for i, wanted in enumerate(update.oracle):
            actual = update.after[i] - update.before[i]
            dtype = run.loop.parameters[i].dtype
            size = max(float(np.linalg.norm(wanted)), float(np.linalg.norm(actual)))
            bound = limits.number("step_replay", dtype) * size
            bound += 2 * precision.epsilon(dtype) * float(np.linalg.norm(update.before[i]))
            if not float(np.linalg.norm(actual - wanted)) <= bound:
                return Judged((_unlike(run, update, i, number),), moves)
    if oracles:
        return Judged((), moves)
    hint = "claim optimizer= to have it replayed"
    note = Finding(code="step-not-replayed", severity="note", message=f"{told}; {hint}")
    return Judged((note,), moves)


def _unlike(run: Run, update: Any, i: int, number: int) -> Finding:
    actual, wanted = update.after[i] - update.before[i], update.oracle[i]
    ratio, cosine = clipping.ratio(actual.ravel(), wanted.ravel())
    told = f"moves {run.names[i]} otherwise than the optimizer says (cosine {cosine:.3g})"
    if cosine > 1 - 1e-4:
        told = f"moves {run.names[i]} by {ratio:.4g} times what the optimizer says"
    elif cosine < -1 + 1e-4:
        told = f"moves {run.names[i]} by the negative of what the optimizer says"
    elif not np.any(actual):
        told = f"does not move {run.names[i]}, though the optimizer says so"
    return Finding(
        code="step-update",
        severity="fail",
        where=run.names[i],
        message=f"the step {told} (update {number}); apply each update once, to the parameters "
        f"that the optimizer was given",
        numbers=(("update", number), ("ratio", ratio), ("cosine", cosine)),
    )


def _moves(run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits, name: str) -> Moves:
    found: Moves = {}
    base: dict[str, Any] = DEFAULTS.get(name, {})
    for number, p in enumerate(pairs):
        for update in p.window.updates:
            received = p.got if update.received is None else update.received
            if p.is_absorbed:
                received = p.expected.clipped
            given = received if received is not None else p.expected.clipped
            for i, tracked in enumerate(run.loop.parameters):
                if tracked.owners == 0 or not tracked.trainable:
                    continue
                if update.which and not update.hyper[i]:
                    continue
                group = {**base, **update.hyper[i]}
                g = given[i]
                slack = 0.0
                if received is None and g is not None:
                    sizes = float(np.linalg.norm(g)), LEAST * p.expected.norm
                    share = limits.number("step_gradient", tracked.dtype) + run.loop.doubt
                    slack = share * max(sizes)
                move = Move(
                    update.before[i],
                    update.after[i],
                    g,
                    contract.at(tracked.name, group, number),
                    slack,
                )
                found.setdefault(i, []).append(move)
    return found


def _hyper(moves: Moves) -> dict[str, Any]:
    """The hyperparameters of the parameter with the most decay: what can be wrong shows there."""
    first: list[Hyper] = [m[0].hyper for m in moves.values()]
    return dict(sorted(first, key=_decay_of)[-1])


def _decay_of(hyper: Hyper) -> float:
    return float(hyper.get("weight_decay") or 0.0)


def _accused(
    run: Run, moves: Moves, name: str, wrong: dict[int, Misfit], limits: Limits
) -> Finding:
    i, off = min(wrong.items(), key=lambda item: (item[1].update, -item[1].error))
    suspect = _explained(run, moves, name, wrong, limits)
    places = run.names[i] if len(wrong) == 1 else f"{len(wrong)} of {len(moves)} tensors"
    return Finding(
        code=suspect.code,
        severity="fail",
        where=run.names[i],
        message=f"{suspect.message} (first at update {off.update}, in {places}, off by "
        f"{_percent(off.error)}); {suspect.advice}",
        numbers=(
            ("update", off.update),
            ("error", off.error),
            ("ratio", off.ratio),
            ("cosine", off.cosine),
        ),
    )


def _percent(error: float) -> str:
    return f"{error:.0%}" if error >= 0.1 else f"{100 * error:.2g} %"


def _explained(
    run: Run, moves: Moves, name: str, wrong: dict[int, Misfit], limits: Limits
) -> Suspect:
    """What the updates are like, and what to try."""
    mine = {i: moves[i] for i in wrong}
    where = "" if len(wrong) == len(moves) else f" for {', '.join(run.names[i] for i in wrong)}"
    if all(np.array_equal(m.before, m.after) for each in mine.values() for m in each):
        told = f"the optimizer does not move {', '.join(run.names[i] for i in wrong)}"
        return Suspect("step-not-applied", told, "apply the update; look for copies, views")
    rate = rates.of_rate(run, mine, name, limits)
    if rate is not None:
        return Suspect("step-rate", rate + where, "look at the learning rate and its schedule")
    for told, change in variants(name, _hyper(mine)):
        for dialect in dialects(name, _hyper(mine)):
            if not rates.wrong(run, mine, name, {**dialect, **change}, limits):
                message = f"the update is that of {name} {told}{where}"
                if "decay" in told:
                    return Suspect("step-decay", message, "compare the formula")
                return Suspect("step-optimizer", message, "compare the formula")
    for other, defaults in DEFAULTS.items():
        if other not in (name, "muon"):  # which is for matrices alone
            change = {**defaults, "rule": other, **_shared(moves, defaults)}
            if not rates.wrong(run, mine, name, change, limits):
                told = f"the update is that of {other}, not of {name}{where}"
                return Suspect("step-optimizer", told, "look at which optimizer is built")
    return Suspect(
        "step-optimizer",
        f"the update is not that of {name}{where}",
        "compare the formula, its state, and what else writes into parameters",
    )


def _shared(moves: Moves, defaults: dict[str, Any]) -> dict[str, Any]:
    hyper = _hyper(moves)
    return {k: hyper[k] for k in defaults if k in hyper}


def _weak(run: Run, moves: Moves, name: str, change: Change, limits: Limits) -> list[Finding]:
    """What the replay could not have seen."""
    hyper = _hyper(moves)
    found = []
    if hyper.get("weight_decay") and not rates.wrong(
        run, moves, name, {**change, "weight_decay": 0.0}, limits
    ):
        found.append(
            Finding(
                code="weak-decay",
                severity="warn",
                message="the decay is smaller than rounding, so its formula was not seen; check "
                "with a larger weight_decay",
            )
        )
    if max(len(each) for each in moves.values()) < 2 and name != "sgd":
        found.append(
            Finding(
                code="weak-updates",
                severity="warn",
                message="there was one update only, which shows no state of the optimizer",
            )
        )
    return found
