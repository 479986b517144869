"""State: idle steps, save and restore, batches and gradients that are left alone."""

from __future__ import annotations

from pytest_gradcheck.backends.steps import Refused
from pytest_gradcheck.checks.steps import spoiled, written
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run, some_of
from pytest_gradcheck.results import Finding

NEAR = 1e-6  # of a parameter: a state that is only rounded anew when it is loaded


def findings(run: Run, contract: Contract, has_rule: bool) -> list[Finding]:
    """What is wrong beside the updates themselves."""
    found = []
    if any(call.changed_batch for call in run.calls):
        found.append(
            Finding(
                code="step-batch-changed",
                severity="fail",
                message="the step writes into its batch; work on a copy",
            )
        )
    touched = next((u for w in run.windows for u in w.updates if u.touched), None)
    if touched is not None:
        found.append(
            Finding(
                code="step-gradient-touched",
                severity="warn",
                message="the optimizer writes into the gradients that it is given; work on copies",
            )
        )
    found += [*written.findings(run), *spoiled.findings(run, contract)]
    if run.windows and not run.calls[-1].error:
        found += _idle(run, contract, has_rule)
        found += [*_restored(run), *_resumed(run), *_repeated(run)]
    return found


def _may_decay(run: Run, contract: Contract, name: str) -> bool:
    """Whether a decay is claimed that the optimizer has under a name that nobody knows.

    It cannot be switched off for a trial then; each update was held against it.
    """
    i = run.names.index(name)
    known = next((u.hyper[i] for w in run.windows for u in w.updates if u.hyper[i]), {})
    return "weight_decay" not in known and bool(contract.at(name, known, 0).get("weight_decay"))


def _idle(run: Run, contract: Contract, has_rule: bool) -> list[Finding]:
    for what, moved, is_finite in (*run.zero, *run.loop.idle(False)):
        names = list(moved)
        if what == "with zero gradients" and is_finite and has_rule:
            names = [name for name in names if not _may_decay(run, contract, name)]
        # What a rate means to an optimizer that is not known, and how it decays, nobody knows.
        if names and (has_rule or what == "without gradients" or not is_finite):
            return [
                Finding(
                    code="step-idle",
                    # What divides zero by zero by its own rule is told, not accused.
                    severity="fail" if has_rule or is_finite else "warn",
                    where=names[0],
                    message=f"a step {what} {'changes' if is_finite else 'spoils'} {some_of(names)}"
                    f"{'' if is_finite else ': it is not finite then'}; leave what has nothing to "
                    f"do as it is, and look at eps in {run.coarsest}",
                )
            ]
    return []


def _restored(run: Run) -> list[Finding]:
    update = run.windows[-1].updates[-1]
    if update.received is None:
        return []
    off = run.loop.restored(update)
    if isinstance(off, Refused):
        return [_refused(run, off)]
    if not off:
        return []
    name, error = max(off, key=lambda pair: pair[1])
    return [
        Finding(
            code="step-restore",
            severity="fail" if error > NEAR else "note",
            where=name,
            message=f"after its state is saved and loaded, the optimizer moves {name} "
            f"otherwise; look at what state_dict leaves out or maps to another parameter",
        )
    ]


def _refused(run: Run, refused: Refused) -> Finding:
    if refused.is_fault:
        return Finding(
            code="step-restore",
            severity="fail",
            message=f"{run.loop.shown} does not go on from its saved state: {refused.told}; look "
            f"at which parameters its groups and its state hold",
        )
    return Finding(
        code="step-restore",
        severity="note",
        message=f"{run.loop.shown} is not tried from a saved state: {refused.told}",
    )


def _resumed(run: Run) -> list[Finding]:
    return [
        Finding(
            code="step-restore",
            severity="fail",
            where=name,
            message=f"{name} does not go on from its saved state: {told}; put what it counts "
            f"into its state_dict",
        )
        for name, told in run.loop.resumed()
    ]


def _repeated(run: Run) -> list[Finding]:
    off = [(name, error) for name, error in run.loop.repeated() if error > NEAR]
    if not off:
        return []
    name, error = max(off, key=lambda pair: pair[1])
    return [
        Finding(
            code="step-hidden-state",
            severity="warn",
            where=name,
            message=f"the step moves {name} otherwise when it is called again with the same "
            f"parameters, state and batch: it keeps something elsewhere, which is lost when a "
            f"training is saved and loaded",
            numbers=(("error", error),),
        )
    ]
