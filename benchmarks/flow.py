"""The flow of gradients: what is found, what is accused wrongly, where, why, and at what cost.

Run: ``python benchmarks/flow.py [--only SECTION] [--list]``; one thread, default arguments. Each
check draws five initialisations, and up to twenty where a verdict is open. Rivals' rules look at
one run, as they do where they come from.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from corpora import (
    autotrainer,
    flow_networks,
    flow_rivals,
    healthy,
    healthy_branches,
    healthy_jax,
    healthy_more,
    origins,
    planted,
)
from torch import nn

from pytest_gradcheck import Result, check_flow

RUNS = 5  # base seeds of a healthy model
SETS = 8  # disjoint sets of seeds


def symptom(result: Result) -> str:
    """Code of the first failing finding, without its head."""
    codes = (f.code for f in result.findings if f.severity == "fail")
    return next(codes, "").removeprefix("flow-")


def cause(result: Result) -> str:
    """The cause that was confirmed."""
    head = "flow-cause-"
    return next((f.code[len(head) :] for f in result.findings if f.code.startswith(head)), "")


def where(result: Result) -> str:
    """Place of the first failing finding."""
    return next((f.where for f in result.findings if f.severity == "fail"), "")


def published(listing: bool) -> None:
    """AutoTrainer's networks on three backends, with the rivals beside."""
    print("\n### AutoTrainer's networks: 31 faulty, 19 healthy\n")
    print("| checker | faulty flagged | right symptom first | alarms on healthy | seconds |")
    print("|---|---|---|---|---|")
    verdicts: dict[str, list[str]] = {}
    for backend in ("numpy", "torch", "jax"):
        count: Counter[str] = Counter()
        news = []
        _checked(autotrainer.HEALTHY[0], backend)  # imports are not what is measured
        began = time.perf_counter()
        for network in (*autotrainer.FAULTY, *autotrainer.HEALTHY):
            result = _checked(network, backend)
            told = symptom(result)
            verdicts.setdefault(network.name, []).append(f"{result.verdict} {told}")
            group = "faulty" if network.symptom else "healthy"
            count[group] += result.verdict != "pass" if group == "healthy" else _failed(result)
            is_small = network.init == autotrainer.SMALL and told == "vanishing"
            count["right"] += bool(told) and (told == network.symptom or is_small)
            if result.verdict != ("fail" if network.symptom else "pass"):
                news.append(f"  {network.name}: {result.headline}")
        seconds = time.perf_counter() - began
        row = f"{count['faulty']}/31 | {count['right']}/31 | {count['healthy']}/19 | {seconds:.1f}"
        print(f"| pytest-gradcheck, {backend} | {row} |")
        if listing and news:
            print(*news, sep="\n")
    _published_rivals()
    same = sum(len(set(told)) == 1 for told in verdicts.values())
    print(f"\nThe same verdict and symptom on all three backends: {same}/50.")


def _checked(network: autotrainer.Network, backend: str, seed: int = 0) -> Result:
    return check_flow(**flow_networks.asked(network, backend), seed=seed, label=network.name)


def _failed(result: Result) -> bool:
    return result.verdict == "fail"


def _published_rivals() -> None:
    rates: Counter[tuple[str, bool]] = Counter()
    runs: Counter[bool] = Counter()
    for network in (*autotrainer.FAULTY, *autotrainer.HEALTHY):
        asked = flow_networks.asked(network, "torch")
        for seed in range(20):
            model = asked["make"](seed)
            told = flow_rivals.gradients(model, asked["loss"], asked["batch"])
            runs[bool(network.symptom)] += 1
            for name, rule in flow_rivals.RULES.items():
                rates[name, bool(network.symptom)] += rule(told)
    for name in flow_rivals.RULES:
        found, false = rates[name, True] / runs[True], rates[name, False] / runs[False]
        print(f"| {name}, one run | {found:.0%} of runs | - | {false:.0%} of runs | - |")


def healthy_models(listing: bool) -> None:
    """Models that train."""
    _healthy("Healthy models", [*healthy.models(), *healthy_more.models()], listing)


def branches(listing: bool) -> None:
    """Models of several heads, branches or networks that train."""
    _healthy("Healthy models of several branches", [*healthy_branches.models()], listing)


def _healthy(title: str, models: list[healthy.Model], listing: bool) -> None:
    print(f"\n### {title}: {len(models)} models, {RUNS} sets of seeds each\n")
    alarms: Counter[str] = Counter()
    news, runs, ends = [], 0, []
    began = time.perf_counter()
    for model in models:
        for run in range(RUNS):
            base = 1000 * run
            result = check_flow(
                None, model.loss, model.batch, make=model.make, seed=base, label=model.name
            )
            runs += 1
            alarms["pytest-gradcheck"] += result.verdict != "pass"
            alarms["warnings"] += any(f.severity == "warn" for f in result.findings)
            ends.append(_attenuation(result))
            if result.verdict != "pass":
                news.append(f"  {model.name}: {result.headline}")
            torch.manual_seed(base)
            told = flow_rivals.gradients(model.make(), model.loss, model.batch)
            for name, rule in flow_rivals.RULES.items():
                alarms[name] += rule(told)
    seconds = time.perf_counter() - began
    known = [e for e in ends if np.isfinite(e)]
    print("| checker | alarms | rate |\n|---|---|---|")
    for name in ("pytest-gradcheck", "warnings", *flow_rivals.RULES):
        label = "pytest-gradcheck, warnings of a pass" if name == "warnings" else name
        print(f"| {label} | {alarms[name]}/{runs} | {alarms[name] / runs:.1%} |")
    print(
        f"\n{seconds:.0f} s. Flow from end to end: {min(known):.2g} to {max(known):.2g} "
        f"(limits 0.01 and 100)."
    )
    if listing:
        print(*news, sep="\n")


def healthy_jax_models(listing: bool) -> None:
    """JAX models that train."""
    models = list(healthy_jax.models())
    count: Counter[str] = Counter()
    for model in models:
        for base in range(0, 1000 * RUNS, 1000):
            result = check_flow(
                None,
                model.loss,
                model.batch,
                make=model.make,
                seed=base,
                label=model.name,
                backend="jax",
            )
            count["alarms"] += result.verdict != "pass"
            count["warnings"] += any(f.severity == "warn" for f in result.findings)
            if listing and (result.verdict != "pass" or result.findings):
                print(f"  {result.headline}: {[f.code for f in result.findings]}")
    runs = len(models) * RUNS
    print(f"\n### Healthy JAX models: {len(models)} models, {RUNS} sets of seeds each\n")
    print(f"Alarms: {count['alarms']}/{runs}; warnings of a pass: {count['warnings']}/{runs}.")


def _attenuation(result: Result) -> float:
    table = result.table("initialisations")
    values = sorted(float(row[1] or np.nan) for row in table.rows) if table else []
    return values[len(values) // 2] if values else float("nan")


def faults(listing: bool) -> None:
    """Planted faults."""
    print("\n### Planted faults\n")
    print("| backend | faults | flagged | symptom right | layer right | cause right, of those |")
    print("|---|---|---|---|---|---|")
    total: Counter[str] = Counter()
    for backend, made in (
        ("torch", planted.torch_faults),
        ("jax", planted.jax_faults),
        ("numpy", planted.numpy_faults),
    ):
        count: Counter[str] = Counter()
        for fault in made():
            count += _scored(fault, listing)
        total += count
        print(_row(backend, count))
    print(_row("all", total))


def _scored(fault: planted.Fault, listing: bool) -> Counter[str]:
    result = check_flow(
        fault.model,
        fault.loss,
        fault.batch,
        make=fault.make,
        seed=77,
        label=fault.name,
        backend=fault.backend,
    )
    place = where(result)
    count = Counter(
        all=1,
        flagged=_failed(result),
        symptom=symptom(result) in fault.symptoms,
        placed=bool(fault.layers),
        layer=bool(fault.layers) and any(_is_at(place, name) for name in fault.layers),
        caused=bool(fault.causes),
        cause=bool(fault.causes) and cause(result) in fault.causes,
    )
    is_wrong = count["flagged"] + count["symptom"] < 2 or count["layer"] < count["placed"]
    if listing and (is_wrong or count["cause"] < count["caused"]):
        print(f"  {fault.backend} {fault.name}: {result.headline}; {place}; {cause(result)}")
    return count


def _is_at(place: str, name: str) -> bool:
    return place == name or place.startswith(f"{name}.") or name in place.split(".")


def _row(name: str, count: Counter[str]) -> str:
    cells = [
        count["all"],
        count["flagged"],
        count["symptom"],
        f"{count['layer']}/{count['placed']}",
        f"{count['cause']}/{count['caused']}",
    ]
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


class _Scaled(nn.Module):
    """A network with one layer times a factor and the next one over it: the same function."""

    def __init__(self, model: nn.Sequential, factor: float) -> None:
        super().__init__()
        self.model = model
        layers = [part for part in model if isinstance(part, nn.Linear)]
        with torch.no_grad():
            for layer, other in zip(layers[:-1:2], layers[1::2], strict=False):
                layer.weight.mul_(factor)
                layer.bias.mul_(factor)
                other.weight.div_(factor)

    def forward(self, x: Any) -> Any:
        return self.model(x)


def _variants(make: Callable[[], Any]) -> Iterator[tuple[str, Callable[[], Any], Any, bool]]:
    """Changes that may not change a verdict: name, model, loss, whether in double precision."""
    plain = healthy.classify
    yield "loss x 1e6", make, lambda m, b: 1e6 * plain(m, b), False
    yield "loss x 1e-6", make, lambda m, b: 1e-6 * plain(m, b), False
    yield "sum for mean", make, healthy.total, False
    yield "float64", lambda: make().double(), plain, True
    yield "layers x 30", lambda: _Scaled(make(), 30.0), plain, False
    yield "layers / 30", lambda: _Scaled(make(), 1 / 30), plain, False


def invariances(listing: bool) -> None:
    """Verdict and symptom under changes that leave the function alone."""
    print("\n### Invariances\n")
    kept: Counter[str] = Counter()
    count: Counter[str] = Counter()
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 16, generator=generator)
    y = torch.randint(0, 10, (64,), generator=generator)
    made = {
        f"{act.__name__} {depth} {factor}": planted._plain(depth, act, planted._times(factor))
        for act in (nn.ReLU, nn.LeakyReLU)
        for depth, factor in ((4, 1.0), (10, 1.0), (10, 0.05), (10, 0.3), (10, 8.0), (24, 1.0))
    }
    made["dead"] = planted._plain(5, nn.ReLU, planted._bias(-10.0))
    made["constant"] = planted._plain(5, nn.ReLU, planted._constant)
    for name, make in made.items():
        plain = check_flow(None, healthy.classify, (x, y), make=make, seed=3)
        for change, other, loss, is_wide in _variants(make):
            batch = (x.double(), y) if is_wide else (x, y)
            result = check_flow(None, loss, batch, make=other, seed=3)
            count[change] += 1
            same = (result.verdict, symptom(result)) == (plain.verdict, symptom(plain))
            kept[change] += same
            if listing and not same:
                print(f"  {name}, {change}: {plain.headline} / {result.headline}")
    print("| change | verdict and symptom kept |\n|---|---|")
    for change, number in count.items():
        print(f"| {change} | {kept[change]}/{number} |")


def agreement(listing: bool) -> None:
    """Disjoint sets of seeds against one another, on AutoTrainer's networks."""
    agreed = total = 0
    for network in (*autotrainer.FAULTY, *autotrainer.HEALTHY):
        told = [_checked(network, "numpy", 100 * (1 + k)).verdict for k in range(SETS)]
        most = Counter(told).most_common(1)[0][1]
        agreed, total = agreed + most, total + SETS
        if listing and most < SETS:
            print(f"  {network.name}: {Counter(told)}")
    print(f"\n### Disjoint seeds\n\n{agreed}/{total} verdicts agree with their network's own.")


def births(listing: bool) -> None:
    """The first value that is not finite."""
    count: Counter[str] = Counter()
    for case in origins.cases():
        result = check_flow(**origins.asked(case), seed=5)
        found = next((f for f in result.findings if f.code == "flow-nonfinite"), None)
        if not case.op:
            count["benign"] += 1
            count["alarms"] += found is not None
            continue
        count["planted"] += 1
        is_right = found is not None and found.where.rpartition(".")[2] in case.op
        is_right = is_right and found is not None and f"born {case.phase}" in found.message
        count["exact"] += is_right
        if listing and not is_right:
            print(f"  {case.backend} {case.name}: {found.message if found else 'not found'}")
    print("\n### First value that is not finite\n")
    print(f"Exact operation and phase: {count['exact']}/{count['planted']};")
    print(f"alarms on harmless ones: {count['alarms']}/{count['benign']}.")


def cost(listing: bool) -> None:
    """A 12-layer transformer: one pass under watch over one forward and backward."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(256, 8, 1024, 0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(1000, 256), body, nn.Linear(256, 1000))
    batch = (torch.randint(0, 1000, (8, 64)), torch.randint(0, 1000, (8, 64)))
    plain, whole = [], []
    for _ in range(5):
        began = time.perf_counter()
        healthy.tokens(model, batch).backward()
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        check_flow(model, healthy.tokens, batch, seeds=5, seed=0)
        whole.append((time.perf_counter() - began) / 5)
    ratio = min(whole) / min(plain)
    print("\n### Cost\n\nA 12-layer transformer, 10 M parameters, five initialisations:")
    print(f"{ratio:.1f} times one forward and backward per initialisation, all included.")


SECTIONS = {
    "published": published,
    "healthy": healthy_models,
    "branches": branches,
    "healthy-jax": healthy_jax_models,
    "planted": faults,
    "invariances": invariances,
    "agreement": agreement,
    "births": births,
    "cost": cost,
}


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="all by default")
    parser.add_argument("--list", action="store_true", help="name what is not as it should be")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for name in asked.only or SECTIONS:
        gc.collect()
        gc.freeze()  # what a section leaves behind is not a cost of the next
        SECTIONS[name](asked.list)


if __name__ == "__main__":
    main()
