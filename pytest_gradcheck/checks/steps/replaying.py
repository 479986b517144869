"""Updates held against an independent replay of the claimed optimizer, mistakes named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradcheck.checks.steps import held
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.received import LEAST, Pair
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.optimizers import DEFAULTS, Hyper
from pytest_gradcheck.numerics.replay import Misfit, Move, misfit
from pytest_gradcheck.numerics.variants import Change, dialects, variants
from pytest_gradcheck.results import Finding

Moves = dict[int, list[Move]]


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
        wrong = _wrong(run, moves, name, change, limits)
        if not wrong:
            found = held.findings(run, moves, name, change)
            found += [] if found else _weak(run, moves, name, change, limits)
            return Judged(tuple(found), moves, name, change)
    wrong = _wrong(run, moves, name, {}, limits)
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


def _wrong(run: Run, moves: Moves, name: str, change: Change, limits: Limits) -> dict[int, Misfit]:
    found = {}
    for i, each in moves.items():
        dtype = run.loop.parameters[i].dtype
        off = misfit(
            name, each, change, limits.number("step_replay", dtype), precision.epsilon(dtype)
        )
        if off is not None:
            found[i] = off
    return found


def _accused(
    run: Run, moves: Moves, name: str, wrong: dict[int, Misfit], limits: Limits
) -> Finding:
    i, off = min(wrong.items(), key=lambda item: (item[1].update, -item[1].error))
    code, told, advice = _explained(run, moves, name, wrong, limits)
    places = run.names[i] if len(wrong) == 1 else f"{len(wrong)} of {len(moves)} tensors"
    return Finding(
        code=code,
        severity="fail",
        where=run.names[i],
        message=f"{told} (first at update {off.update}, in {places}, off by {_percent(off.error)})"
        f"; {advice}",
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
) -> tuple[str, str, str]:
    """Code, what it is like, and what to try."""
    mine = {i: moves[i] for i in wrong}
    where = "" if len(wrong) == len(moves) else f" for {', '.join(run.names[i] for i in wrong)}"
    if all(np.array_equal(m.before, m.after) for each in mine.values() for m in each):
        told = f"the optimizer does not move {', '.join(run.names[i] for i in wrong)}"
        return "step-not-applied", told, "apply the update; look for copies, and for views"
    rate = _of_rate(run, mine, name, limits)
    if rate is not None:
        return "step-rate", rate + where, "look at the learning rate and its schedule"
    for told, change in variants(name, _hyper(mine)):
        for dialect in dialects(name, _hyper(mine)):
            if not _wrong(run, mine, name, {**dialect, **change}, limits):
                code = "step-decay" if "decay" in told else "step-optimizer"
                return code, f"the update is that of {name} {told}{where}", "compare the formula"
    for other, defaults in DEFAULTS.items():
        if other not in (name, "muon"):  # which is for matrices alone
            change = {**defaults, "rule": other, **_shared(moves, defaults)}
            if not _wrong(run, mine, name, change, limits):
                told = f"the update is that of {other}, not of {name}{where}"
                return "step-optimizer", told, "look at which optimizer is built"
    return (
        "step-optimizer",
        f"the update is not that of {name}{where}",
        "compare the formula, its state, and what else writes into parameters",
    )


def _shared(moves: Moves, defaults: dict[str, Any]) -> dict[str, Any]:
    hyper = _hyper(moves)
    return {k: hyper[k] for k in defaults if k in hyper}


def _of_rate(run: Run, moves: Moves, name: str, limits: Limits) -> str | None:
    """A learning rate other than the claimed one, if that explains every update."""
    count = min(len(each) for each in moves.values())
    rates = []
    for k in range(count):
        i = max(moves, key=lambda j: float(np.linalg.norm(moves[j][k].after - moves[j][k].before)))
        found = _rate(run, moves[i][: k + 1], name, limits, i)
        if found is None:
            return None
        rates.append(found)
    claimed = [next(iter(moves.values()))[k].hyper["lr"] for k in range(count)]
    changed = {
        i: [
            Move(m.before, m.after, m.gradient, {**m.hyper, "lr": r}, m.slack)
            for m, r in zip(each, rates, strict=False)
        ]
        for i, each in moves.items()
    }
    if _wrong(run, changed, name, {}, limits):
        return None
    odd = [k for k in range(count) if abs(rates[k] - claimed[k]) > 1e-3 * abs(claimed[k])]
    if not odd:
        return None
    k = odd[0]
    return (
        f"the learning rate of update {k + 1} is {rates[k]:.4g}, not the claimed {claimed[k]:.4g}"
    )


def _rate(run: Run, moves: Sequence[Move], name: str, limits: Limits, i: int) -> float | None:
    """The rate with which the last of some updates agrees: every rule is linear in it."""
    last = moves[-1]
    base = last.hyper["lr"] or 1e-3
    ends = []
    for rate in (base, 2 * base):
        each = [*moves[:-1], _with_rate(last, rate)]
        ends.append(_last(name, each))
    slope = (ends[1] - ends[0]).ravel() / base
    size = float(np.vdot(slope, slope))
    if not size:
        return None
    rest = (last.after - last.before - ends[0]).ravel()
    return float(base + np.vdot(rest, slope) / size)


def _with_rate(move: Move, rate: float) -> Move:
    return Move(move.before, move.after, move.gradient, {**move.hyper, "lr": rate}, move.slack)


def _last(name: str, moves: Sequence[Move]) -> np.ndarray:
    from pytest_gradcheck.numerics.optimizers import replayed

    state: dict[str, np.ndarray] = {}
    update, count = np.zeros_like(moves[-1].before), 0
    for move in moves:
        if move.gradient is not None:
            count += 1
            update, state = replayed(name, move.gradient, move.before, state, count, move.hyper)
    return update


def _weak(run: Run, moves: Moves, name: str, change: Change, limits: Limits) -> list[Finding]:
    """What the replay could not have seen."""
    hyper = _hyper(moves)
    found = []
    if hyper.get("weight_decay") and not _wrong(
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
