"""Updates held against an independent replay of the claimed optimizer, mistakes named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pytest_gradcheck.checks.steps import held, oracles, rates
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.expected import TORCH_FLOOR
from pytest_gradcheck.checks.steps.measure import Run, percent
from pytest_gradcheck.checks.steps.rates import Moves
from pytest_gradcheck.checks.steps.received import LEAST, Pair
from pytest_gradcheck.checks.steps.suspect import Suspect
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.numerics.optimizers import DEFAULTS, Hyper
from pytest_gradcheck.numerics.replay import Followed, Misfit, Move
from pytest_gradcheck.numerics.variants import Change, dialects, variants
from pytest_gradcheck.results import Finding

UNEXPLAINED = "the update is not that of"


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
            findings.append(oracles.not_replayed(f"{told} builds a fresh one"))
        elif _is_other(inferred, name) and _is_own(run, pairs, contract, limits, which):
            findings.append(_another(run, name, inferred))
        elif name:
            found, followed = _by_rule(run, moves, name, limits)
            findings += found
            replays |= followed
        else:
            findings += oracles.findings(run, pairs, contract, limits)
    return Judged(tuple(findings), replays)


def _is_other(inferred: str, name: str) -> bool:
    """Whether an optimizer is of another rule than is claimed, by more than where it decays."""
    return bool(inferred) and inferred.removesuffix("w") != name.removesuffix("w")


def _is_own(
    run: Run, pairs: Sequence[Pair], contract: Contract, limits: Limits, which: int
) -> bool:
    """Whether updates are those of the class of the optimizer."""
    name = run.loop.rules[which]
    moves = _moves(run, pairs, contract, limits, name, which)
    return any(rates.fits(run, moves, name, c, limits) for c in dialects(name, _hyper(moves)))


def _another(run: Run, name: str, inferred: str) -> Finding:
    return Finding(
        code="step-optimizer",
        severity="fail",
        message=f"the optimizer that was handed over is {run.loop.shown}, and its updates are "
        f"those of {inferred}, not of the claimed {name}; claim optimizer={inferred!r}, or build "
        f"the other one",
    )


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
    if pair.expected.inner is not None:
        received = pair.expected.inner
    g = (received if received is not None else pair.expected.clipped)[i]
    slack = 0.0
    if received is None and g is not None:
        sizes = float(np.linalg.norm(g)), LEAST * pair.expected.norm
        share = limits.number("step_gradient", run.loop.parameters[i].dtype) + run.loop.doubt
        if pair.expected.bites:  # a clip may add a small number to its norm, or not
            share += TORCH_FLOOR / max(pair.expected.norm, TORCH_FLOOR)
        slack = share * max(sizes) + pair.expected.doubt(i)
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
    often = next((u for w in run.windows for u in w.updates if u.asked > 1), None)
    if often is not None:
        told = oracles.asked_often(run, often)
        return Suspect("step-optimizer", told + where, "ask it once for each update")
    if any(u.is_astray for w in run.windows for u in w.updates):
        told = f"{run.loop.shown} is given other parameters than those of the step"
        advice = "give it the parameters that it is to move: its decay goes from there"
        return Suspect("step-optimizer", told + where, advice)
    return Suspect(
        "step-optimizer",
        f"{UNEXPLAINED} {name}{where}",
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
