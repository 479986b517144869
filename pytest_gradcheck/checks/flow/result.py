"""From symptoms and trials to the result: findings, headline, tables, advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_gradcheck.backends.layers import Origin
from pytest_gradcheck.backends.probes import Probe
from pytest_gradcheck.checks.flow.cause import Trial
from pytest_gradcheck.checks.flow.passes import Passes, Statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.checks.flow.words import (
    ADVICE,
    CAUSES,
    CHANGED,
    CODES,
    FIXES,
    TITLES,
)
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.results import Evidence, Finding, Result, Verdict

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

LONGEST = 40  # of a name in a headline


def result(
    label: str,
    passes: Passes,
    seen: Statistics | None,
    found: Sequence[Symptom],
    tried: Sequence[Trial],
    limits: Limits,
) -> Result:
    """The result, but for its context."""
    verdict = _verdict(found, seen)
    first = next((s for s in found if s.severity == "fail"), None)
    cause = next((t for t in tried if t.restored), None)
    findings = [_finding(s) for s in found]
    if cause is not None and first is not None:
        spot = next(i for i, s in enumerate(found) if s is first)
        findings.insert(spot + 1, _cause(cause, seen, first))
    return Result(
        check="flow",
        label=label,
        verdict=verdict,
        headline=_headline(verdict, label, first, passes, seen),
        findings=tuple(findings),
        evidence=tuple(_evidence(passes, seen, tried)),
        limits=limits.used(passes.probe.dtype or "float64"),
        advice=tuple(_advice(first, cause, seen, passes.is_single)) if first is not None else (),
    )


def _verdict(found: Sequence[Symptom], seen: Statistics | None) -> Verdict:
    failing = [s for s in found if s.severity == "fail"]
    if any(not s.is_open for s in failing):
        return "fail"
    if failing:
        return "undecided"
    return "pass" if seen is not None and seen.branches else "vacuous"


def _finding(symptom: Symptom) -> Finding:
    return Finding(
        code=CODES[symptom.kind],
        severity=symptom.severity,
        where=symptom.where,
        message=symptom.message,
        numbers=symptom.numbers,
    )


def _cause(trial: Trial, seen: Statistics | None, symptom: Symptom) -> Finding:
    changed = CHANGED[trial.change].format(where=trial.where)
    before = dict(symptom.numbers).get("growth")
    numbers = [("growth", trial.growth), ("attenuation", _power(trial.attenuation))]
    told = f"{changed} the flow is restored: {_power(trial.attenuation):.2g} in all"
    if before is not None:
        told += f", {trial.growth:.2g} per layer in place of {before:.2g}"
        numbers.append(("growth_before", float(before)))
    return Finding(
        code=CAUSES[trial.change],
        severity="note",
        where=trial.where,
        message=told,
        numbers=tuple(numbers),
    )


def _power(log: float) -> float:
    return 10.0 ** min(max(log, -300.0), 300.0) if not math.isnan(log) else math.nan


def _headline(
    verdict: Verdict,
    label: str,
    symptom: Symptom | None,
    passes: Passes,
    seen: Statistics | None,
) -> str:
    label = _short(label)
    if verdict == "vacuous" and symptom is None:
        return f"vacuous: no gradient was seen in {label}"
    if symptom is None:
        return f"the gradient flows through {label}: {_summary(passes, seen)}"
    told = f"{TITLES[symptom.kind]} in {label}"
    numbers = dict(symptom.numbers)
    if symptom.is_open and "low" in numbers and "growth" in numbers:
        told += f": {numbers['low']:.1e} to {numbers['high']:.1e} in all"
    elif "growth" in numbers:
        told += f": {numbers['growth']:.2g} per layer, {numbers['attenuation']:.1e} in all"
    elif symptom.where:
        told += f" at {_short(symptom.where)}"
    return told if verdict == "fail" else f"undecided: perhaps {told}"


def _summary(passes: Passes, seen: Statistics | None) -> str:
    count = len(passes.seen)
    noun = "initialisation" if count == 1 else "initialisations"
    if seen is None or math.isnan(seen.mean):
        return f"{count} {noun}"
    return f"{_power(seen.mean):.2g} from end to end, {count} {noun}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _advice(
    symptom: Symptom, cause: Trial | None, seen: Statistics | None, is_single: bool
) -> list[str]:
    if is_single and symptom.is_open:
        return ["give make=, which builds the model afresh: several initialisations would tell"]
    if cause is None:
        return [ADVICE[symptom.kind].format(where=symptom.where or "the loss")]
    ops = [y.op for y in seen.layers if y.kind == "activation" and y.index >= 0] if seen else []
    return [FIXES[cause.change].format(op=ops[0] if ops else "this activation", where=cause.where)]


def _evidence(passes: Passes, seen: Statistics | None, tried: Sequence[Trial]) -> list[Evidence]:
    tables = [_layers(seen)] if seen is not None and seen.layers else []
    if passes.seen:
        tables.append(_parameters(passes))
    if seen is not None:
        tables.append(_initialisations(passes, seen))
    if tried:
        tables.append(_trials(tried))
    if passes.seen and passes.seen[0].turns:
        tables.append(_turns(passes))
    return tables


def _layers(seen: Statistics) -> Evidence:
    rows = [
        (
            y.name,
            y.op,
            _middle(y.flows),
            _middle(y.gradients),
            _middle(y.activations),
            _middle(y.dead),
            _middle(y.saturated),
        )
        for y in seen.layers
    ]
    return Evidence(
        name="layers",
        title="size of the gradient against layer, in the order of the data",
        columns=("layer", "operation", "flow", "gradient", "activation", "dead", "saturated"),
        rows=tuple(rows),
    )


def _middle(values: Sequence[float]) -> float | None:
    known = sorted(v for v in values if not math.isnan(v))
    return known[len(known) // 2] if known else None


def _parameters(passes: Passes) -> Evidence:
    rows = [
        (p.name, p.value, None if math.isnan(p.gradient) else p.gradient, _known(p.update))
        for p in passes.seen[0].parameters
    ]
    return Evidence(
        name="parameters",
        title="size of the gradient of each parameter, first initialisation",
        columns=("parameter", "size", "gradient", "update ratio"),
        rows=tuple(rows),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _initialisations(passes: Passes, seen: Statistics) -> Evidence:
    logs = seen.attenuations or [math.nan] * len(passes.finite)  # where no layer was seen
    rows = [
        (passes.seed + number, _known(_power(log)), one.loss)
        for number, (log, one) in enumerate(zip(logs, passes.finite, strict=True))
    ]
    return Evidence(
        name="initialisations",
        title="attenuation and first loss of each finite initialisation",
        columns=("seed", "attenuation", "loss"),
        rows=tuple(rows),
    )


def _trials(tried: Sequence[Trial]) -> Evidence:
    return Evidence(
        name="interventions",
        title="what one change at a time does to the flow",
        columns=("change", "attenuation", "growth per layer", "dead", "restored"),
        rows=tuple(
            (t.change, _known(_power(t.attenuation)), _known(t.growth), _known(t.dead), t.restored)
            for t in tried
        ),
    )


def _turns(passes: Passes) -> Evidence:
    return Evidence(
        name="turns",
        title="size of layers in loops that have no gradient, turn by turn, first initialisation",
        columns=("layer", "turn", "activation"),
        rows=tuple((t.name, t.number, _known(t.activation)) for t in passes.seen[0].turns),
    )


def of_origin(found: Origin, share: str) -> Symptom:
    """The symptom of a value that is not finite, or of one that reaches nothing."""
    spot = ".".join(part for part in (found.where, found.op) if part)
    at = f" ({found.place})" if found.place else ""
    at += f" in turn {found.turn} of its loop" if found.turn else ""
    if found.phase == "given" and found.reaches != "nothing":
        word = {"nan": "NaN", "inf": "infinite"}[found.value]
        told = f"{found.op} {found.where} is {word} and reaches the {found.reaches}"
        return Symptom("given", found.where, f"{told}{share}")
    if found.reaches == "nothing":
        told = f"{found.value} is born in {spot}{at} and reaches neither loss nor gradient"
        return Symptom("masked", spot, told, (), "note")
    told = f"{found.value} is born {found.phase} in {spot or 'the loss'}{at} and reaches the "
    told += "loss" if found.reaches == "loss" else "gradient of a parameter, the loss being finite"
    return Symptom("nonfinite", spot, f"{told}{share}")


def labelled(made: Result, probe: Probe) -> Result:
    """The result with backend, device and precision of the probe in its context."""
    context = replace(made.context, backend=probe.backend, device=probe.device, dtype=probe.dtype)
    return replace(made, context=context)
