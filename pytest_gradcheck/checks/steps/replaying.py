"""Updates held against an independent replay of the claimed optimizer, mistakes named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pytest_gradcheck.checks.steps import held, rates, unclaimed
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run, percent
from pytest_gradcheck.checks.steps.rates import Moves
from pytest_gradcheck.checks.steps.received import LEAST, Pair
from pytest_gradcheck.checks.steps.suspect import Suspect
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics import clipping, precision
from pytest_gradcheck.numerics.optimizers import DEFAULTS, Hyper
from pytest_gradcheck.numerics.replay import Followed, Misfit, Move
from pytest_gradcheck.numerics.variants import Change, dialects, variants
from pytest_gradcheck.results import Finding


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What the replay says.

    Args:
        findings: What is wrong, or weak.
        replays: The replay of each parameter that has one, by its number.
    """

    findings: tuple[Finding, ...]
    replays: Mapping[int, Followed] = field(default_factory=dict)


def judged(run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits) -> Judged:
    """Replay every update of every parameter, optimizer by optimizer."""
    findings: list[Finding] = []
    replays: dict[int, Followed] = {}
    for which, inferred in enumerate(run.loop.rules):
        name = contract.optimizer or inferred
        moves = _moves(run, pairs, contract, limits, name, which)
        if not moves:
            continue
        if name and run.loop.is_foreign:
            told = "the optimizer is in use, and its state is not known: give a function that"
            findings.append(_not_replayed(f"{told} builds a fresh one"))
        elif name:
            found, followed = _by_rule(run, moves, name, limits)
            findings += found
            replays |= followed
        else:
            findings += _by_oracle(run, pairs, contract, limits)
    return Judged(tuple(findings), replays)


def _by_rule(
    run: Run, moves: Moves, name: str, limits: Limits
) -> tuple[list[Finding], dict[int, Followed]]:
    for change in dialects(name, _hyper(moves)):
        replays = rates.replays(run, moves, name, change, limits)
        if all(each.misfit is None for each in replays.values()):
            found = held.findings(run, moves, name, change)
            return found or _weak(run, moves, name, change, limits), replays
    replays = rates.replays(run, moves, name, {}, limits)
    wrong = {i: each.misfit for i, each in replays.items() if each.misfit is not None}
    return [_accused(run, moves, name, wrong, limits)], replays


def _not_seen(run: Run) -> Finding:
    return Finding(
        code="step-not-seen",
        severity="fail",
        message=f"the step never asked {run.loop.shown} that was handed over for an update, so "
        f"neither gradients nor updates were seen; hand over the one that the step uses, where the "
        f"step holds it (a closure, an argument, an attribute), or claim optimizer= with lr=",
    )


def _not_replayed(told: str) -> Finding:
    return Finding(code="step-not-replayed", severity="note", message=told)


def _by_oracle(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits
) -> list[Finding]:
    """The optimizer itself, called once more, where no rule is known by name."""
    oracles = [u for p in pairs for u in p.window.updates if u.oracle]
    for number, update in enumerate(oracles, start=1):
        for i, wanted in enumerate(update.oracle):
            actual = update.after[i] - update.before[i]
            dtype = run.loop.parameters[i].dtype
            size = max(float(np.linalg.norm(wanted)), float(np.linalg.norm(actual)))
            bound = limits.number("step_replay", dtype) * size
            bound += 2 * precision.epsilon(dtype) * float(np.linalg.norm(update.before[i]))
            if not float(np.linalg.norm(actual - wanted)) <= bound:
                return [_unlike(run, update, i, number)]
    if oracles:
        return []
    if getattr(run.loop, "is_unseen", False):
        return [_not_seen(run)]
    if any(p.got is None for p in pairs):
        return unclaimed.findings(run, pairs, contract, limits)
    told = f"updates of {run.loop.shown} are not replayed: its rule is not known"
    return [_not_replayed(f"{told}; claim optimizer= to have them replayed")]


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


def _moves(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits, name: str, which: int
) -> Moves:
    """The updates of every parameter that an optimizer holds."""
    found: Moves = {}
    base: dict[str, Any] = DEFAULTS.get(name, {})
    for number, p in enumerate(pairs):
        for update in p.window.updates:
            if update.which != which:
                continue
            is_known = any(update.hyper)
            for i, tracked in enumerate(run.loop.parameters):
                is_out = tracked.owners == 0 or not tracked.trainable
                if is_out or (is_known and not update.hyper[i]):
                    continue
                hyper = contract.at(tracked.name, {**base, **update.hyper[i]}, number)
                found.setdefault(i, []).append(_move(run, p, update, i, hyper, limits))
    for i, each in found.items():
        start, count = run.loop.starts[i] if run.loop.starts else ({}, 0)
        each[0] = replace(each[0], start=start, count=count)
    return found


def _move(
    run: Run, pair: Pair, update: Any, i: int, hyper: Mapping[str, Any], limits: Limits
) -> Move:
    received = pair.got if update.received is None else update.received
    if pair.is_absorbed:
        received = pair.expected.clipped
    g = (received if received is not None else pair.expected.clipped)[i]
    slack = 0.0
    if received is None and g is not None:
        sizes = float(np.linalg.norm(g)), LEAST * pair.expected.norm
        share = limits.number("step_gradient", run.loop.parameters[i].dtype) + run.loop.doubt
        slack = share * max(sizes)
    return Move(update.before[i], update.after[i], g, hyper, slack)


def _hyper(moves: Moves) -> dict[str, Any]:
    """The hyperparameters of the parameter with the most decay: what can be wrong shows there."""
    first: list[Hyper] = [m[0].hyper for m in moves.values()]
    return dict(sorted(first, key=lambda hyper: float(hyper.get("weight_decay") or 0.0))[-1])


def _accused(
    run: Run,
    moves: Moves,
    name: str,
    wrong: dict[int, Misfit],
    limits: Limits,
) -> Finding:
    i, off = min(wrong.items(), key=lambda item: (item[1].update, -item[1].error))
    suspect = _explained(run, moves, name, wrong, limits)
    places = run.names[i] if len(wrong) == 1 else f"{len(wrong)} of {len(moves)} tensors"
    return Finding(
        code=suspect.code,
        severity="fail",
        where=run.names[i],
        message=f"{suspect.message} (first at update {off.update}, in {places}, off by "
        f"{percent(off.error)}); {suspect.advice}",
        numbers=(
            ("update", off.update),
            ("error", off.error),
            ("ratio", off.ratio),
            ("cosine", off.cosine),
        ),
    )


def _explained(
    run: Run,
    moves: Moves,
    name: str,
    wrong: dict[int, Misfit],
    limits: Limits,
) -> Suspect:
    """What the updates are like, and what to try."""
    mine = {i: moves[i] for i in wrong}
    where = "" if len(wrong) == len(moves) else f" for {', '.join(run.names[i] for i in wrong)}"
    if all(np.array_equal(m.before, m.after) for each in mine.values() for m in each):
        told = f"the optimizer does not move {', '.join(run.names[i] for i in wrong)}"
        return Suspect("step-not-applied", told, "apply the update; look for copies, views")
    unlike = _unlike_claims(run, mine, name, limits)
    if unlike is not None:
        return replace(unlike, message=unlike.message + where)
    given = dialects(name, _hyper(mine))
    found = (rates.of_rate(run, mine, name, change, limits) for change in given)
    rate, is_steady = next(filter(None, found), ("", False))
    of_rate = Suspect("step-rate", rate + where, "look at the learning rate and its schedule")
    if is_steady:
        return of_rate
    for told, change in variants(name, _hyper(mine)):
        for dialect in dialects(name, _hyper(mine)):
            if rates.fits(run, mine, name, {**dialect, **change}, limits):
                message = f"the update is that of {name} {told}{where}"
                if "decay" in told:
                    return Suspect("step-decay", message, "compare the formula")
                return Suspect("step-optimizer", message, "compare the formula")
    if rate:
        return of_rate
    for other, defaults in DEFAULTS.items():
        if other not in (name, "muon"):  # which is for matrices alone
            change = {**defaults, "rule": other, **_shared(moves, defaults)}
            if rates.fits(run, mine, name, change, limits):
                told = f"the update is that of {other}, not of {name}{where}"
                return Suspect("step-optimizer", told, "look at which optimizer is built")
    return Suspect(
        "step-optimizer",
        f"the update is not that of {name}{where}",
        "compare the formula, its state, and what else writes into parameters",
    )


def _unlike_claims(run: Run, moves: Moves, name: str, limits: Limits) -> Suspect | None:
    """A claimed hyperparameter that is another one in the groups of the optimizer."""
    i = next(iter(moves))
    group = next((u.hyper[i] for w in run.windows for u in w.updates if u.hyper[i]), {})
    for key, used in group.items():
        claimed = moves[i][0].hyper.get(key, used)
        if used != claimed and rates.fits(run, moves, name, {key: used}, limits):
            told = f"the update is that of {name} with {key}={used}, not the claimed {claimed}"
            if key == "weight_decay":
                return Suspect("step-decay", told, "look at the groups of the optimizer")
            if key == "lr":
                return Suspect("step-rate", told, "look at the groups of the optimizer")
            return Suspect("step-optimizer", told, "look at the groups of the optimizer")
    return None


def _shared(moves: Moves, defaults: dict[str, Any]) -> dict[str, Any]:
    hyper = _hyper(moves)
    return {k: hyper[k] for k in defaults if k in hyper}


def _weak(run: Run, moves: Moves, name: str, change: Change, limits: Limits) -> list[Finding]:
    """What the replay could not have seen."""
    hyper = _hyper(moves)
    found = []
    if name == "adamw" and not hyper.get("weight_decay"):
        found.append(
            Finding(
                code="weak-decay",
                severity="warn",
                message="there is no decay, and without it adamw is adam; check with one",
            )
        )
    without = {**change, "weight_decay": 0.0}
    if hyper.get("weight_decay") and rates.fits(run, moves, name, without, limits):
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
