"""The derivative check against its rivals: false alarms, what is found, where, and how fast.

Run: ``python benchmarks/derivatives.py [--list]``; one thread, default arguments for everyone, all
checkers on the same functions in one run. Each function runs once, forward and backward, before
anyone is timed on it, and what was loaded by then is left out of garbage collections: one of all
that torch and JAX hold takes longer than a hundred checks, and would fall on whoever has the turn.
True gradients of every case first; then mutants of every ``--every``-th case
that we pass, in seventeen kinds: errors of a relative size of 1e-5 and more of an input's gradient
in float64, of 1 % and more in float32.

Rivals: ``torch.autograd.gradcheck`` slow and fast (``gradgradcheck`` for second order),
``jax.test_util.check_grads`` (order 1; reverse mode alone for mutants, which have no other), and
``scipy.optimize.check_grad`` with the usual threshold 1e-5 on the absolute difference, the output
projected on fixed weights. A rival that raises counts as an alarm.

Then the tables of ``reference.py`` (bounds, misses, scales, kinks) and ``cost.py`` (what a check
costs, one wrong element among a million); ``--part`` picks some.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cost
import jax
import jax.test_util
import numpy as np
import reference
import torch
from corpora import jax_harnesses, numpy_functions, torch_operators
from corpora.case import Case
from corpora.mutants import KINDS
from corpora.wrong import mutant, outputs_of
from scipy.optimize import check_grad

from pytest_gradcheck import check_gradient

CORPORA: dict[str, Callable[[str], Iterator[Case]]] = {
    "torch": torch_operators.cases,
    "jax": jax_harnesses.cases,
    "scipy": numpy_functions.special_cases,
    "numpy": numpy_functions.written_cases,
}
OURS = "pytest-gradcheck"
THRESHOLD = 1e-5


def ours(case: Case, function: Any, vjp: Any, order: int = 1) -> Any:
    """The result, or the exception."""
    try:
        if case.backend == "numpy":
            return check_gradient(function, *case.inputs, vjp=vjp)
        return check_gradient(function, *case.inputs, backend=case.backend, order=order)
    except Exception as error:  # it counts, whatever it is
        return error


def _verdict(result: Any) -> str:
    return "refused" if isinstance(result, Exception) else str(result.verdict)


def _torch(fast: bool) -> Callable[..., bool]:
    def alarm(case: Case, function: Any, vjp: Any, order: int = 1) -> bool:
        check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
        inputs = [x.detach().clone().requires_grad_() for x in case.inputs]
        return not check(function, inputs, fast_mode=fast)

    return alarm


def _jax(case: Case, function: Any, vjp: Any, order: int = 1) -> bool:
    modes = ("fwd", "rev") if function is case.function else ("rev",)
    jax.test_util.check_grads(function, case.inputs, order, modes=modes)
    return False


def _scipy(case: Case, function: Any, vjp: Any, order: int = 1) -> bool:
    shapes = [x.shape for x in case.inputs]
    ends = np.cumsum([0, *(x.size for x in case.inputs)])
    outputs = outputs_of(case, case.inputs)
    weights = np.random.default_rng(0).standard_normal(outputs[0].shape)

    def split(z: np.ndarray) -> list[np.ndarray]:
        return [z[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)]

    return (
        check_grad(
            lambda z: float(np.sum(weights * function(*split(z)))),
            lambda z: np.concatenate([np.ravel(g) for g in vjp(weights, *split(z))]),
            np.concatenate([x.ravel() for x in case.inputs]),
        )
        > THRESHOLD
    )


RIVALS: dict[str, dict[str, Callable[..., bool]]] = {
    "torch": {"torch slow": _torch(fast=False), "torch fast": _torch(fast=True)},
    "jax": {"jax check_grads": _jax},
    "numpy": {"scipy check_grad": _scipy},
}


def alarmed(check: Callable[..., bool], *arguments: Any) -> bool:
    """Whether a rival says no, in whatever way."""
    try:
        return check(*arguments)
    except Exception:  # a rival may raise anything; it counts
        return True


def true_gradients(cases: list[Case], rivals: bool, listing: bool) -> list[Case]:
    """Print the table of true gradients; the cases that we pass.

    Each checker goes through all cases by itself, as in a test suite: alternating ones would pay
    for what the one before pushed out of the processor's caches, the short ones most.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    passed, news = [], []
    checkers = RIVALS[cases[0].backend] if rivals else {}
    for name in (*checkers, OURS):
        for case in cases:
            _warm(case)
            torch.manual_seed(0)
            began = time.process_time()
            if name == OURS:
                result = ours(case, case.function, case.vjp)
                word = _verdict(result)
            else:
                word = "fail" if alarmed(checkers[name], case, case.function, case.vjp) else "pass"
            seconds[name] += time.process_time() - began
            counts[name][word] += 1
            if name == OURS and word == "pass":
                passed.append(case)
            elif name == OURS:
                told = getattr(result, "headline", result)
                news.append(f"  {case.name}: {word}: {str(told).splitlines()[0][:110]}")
    words = ("pass", "fail", "undecided", "vacuous", "refused")
    print("| checker | " + " | ".join(words) + " | CPU s | ms a case |")
    print("|---|" + "---|" * (len(words) + 2))
    for name, count in counts.items():
        cells = " | ".join(str(count[word]) for word in words)
        print(
            f"| {name} | {cells} | {seconds[name]:.1f} | {1e3 * seconds[name] / len(cases):.2f} |"
        )
    if listing:
        print("\nnot a pass of ours:", *sorted(news), sep="\n")
    return passed


def _warm(case: Case) -> None:
    """Run a function and its derivative once, so that nobody is timed loading what they call."""
    try:
        if case.backend != "torch":
            case.function(*case.inputs)
            return
        inputs = [x.detach().clone().requires_grad_() for x in case.inputs]
        for output in torch.utils._pytree.tree_leaves(case.function(*inputs)):
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.sum().abs().backward(retain_graph=True)
    except Exception:  # the checkers will meet it
        return


def mutants(cases: list[Case], every: int, rivals: bool, listing: bool, seed: int) -> None:
    """Print what is found of each kind, and how well it is described."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    news = []
    for case in cases[::every]:
        checkers = RIVALS[case.backend] if rivals else {}
        for number, kind in enumerate(KINDS):
            if case.dtype == "float32" and not kind.in_float32:
                continue
            made = mutant(case, kind, seed + number)
            if made is None:
                continue
            function, vjp, spot = made
            order = 2 if kind.name == "second order" else 1
            result = ours(case, function, vjp, order)
            count, word = found[kind.name], _verdict(result)
            count["all"] += 1
            count[word] += 1
            if word == "fail":
                count["input"] += _names_input(result, spot)
                count["place"] += "[" in result.findings[0].where
                count["pattern"] += any(f.code == kind.code for f in result.findings)
            else:
                told = str(getattr(result, "headline", result)).splitlines()[0][:90]
                news.append(f"  {kind.name}: {case.name}: {word}: {told}")
            for name, check in checkers.items():
                count[name] += alarmed(check, case, function, vjp, order)
    _print_mutants(found, list(RIVALS[cases[0].backend]) if rivals and cases else [])
    if listing:
        print("\nnot found by us:", *news, sep="\n")


def _names_input(result: Any, spot: int) -> bool:
    where = result.findings[0].where.partition("[")[0]
    table = result.table("inputs")
    names = [str(row[0]).partition("[")[0] for row in table.rows] if table else []
    return where in ("", "x") or not names or f".{spot}" in where or len(names) == 1


def _print_mutants(found: dict[str, Counter[str]], rivals: list[str]) -> None:
    head = ["kind", "mutants", OURS, "undecided", "pass", *rivals, "pattern named"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    total: Counter[str] = Counter()
    for kind, count in found.items():
        total += count
        print(_row(kind, count, rivals))
    print(_row("all", total, rivals))


def _row(kind: str, count: Counter[str], rivals: list[str]) -> str:
    other = count["undecided"] + count["vacuous"] + count["refused"]
    cells = [count["all"], count["fail"], other, count["pass"], *(count[name] for name in rivals)]
    share = f"{count['pattern'] / count['fail']:.0%}" if count["fail"] else "-"
    if kind.startswith("one element") and count["fail"]:
        share += f", index {count['place'] / count['fail']:.0%}"
    return f"| {kind} | " + " | ".join(map(str, cells)) + f" | {share} |"


def main() -> None:
    """Run the corpora that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="all by default")
    parser.add_argument("--corpus", action="append", choices=CORPORA, help="all by default")
    parser.add_argument("--dtype", action="append", choices=("float64", "float32"))
    parser.add_argument("--cuda", action="store_true", help="torch's operators on a GPU, alone")
    parser.add_argument("--tf32", action="store_true", help="products of float32 numbers in TF32")
    parser.add_argument("--limit", type=int, default=None, help="cases of each corpus")
    parser.add_argument("--every", type=int, default=None, help="mutants of every so-many-th case")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--no-mutants", action="store_true")
    parser.add_argument("--list", action="store_true", help="name what is not as it should be")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = asked.tf32
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for part in asked.part or PARTS:
        PARTS[part](asked)


def _corpora(asked: argparse.Namespace) -> None:
    for name in ["torch"] if asked.cuda else asked.corpus or CORPORA:
        for dtype in asked.dtype or ("float64", "float32"):
            with jax.enable_x64(dtype == "float64"):
                _corpus(name, dtype, asked)


def _corpus(name: str, dtype: str, asked: argparse.Namespace) -> None:
    made = torch_operators.cases(dtype, "cuda") if asked.cuda else CORPORA[name](dtype)
    cases = list(made)[: asked.limit]
    if not cases:
        return
    ours(cases[0], cases[0].function, cases[0].vjp)  # imports are not what is compared
    gc.collect()
    gc.freeze()
    print(f"\n### {name}, {dtype}: {len(cases)} true gradients\n")
    passed = true_gradients(cases, not asked.no_rivals, asked.list)
    if asked.no_mutants:
        return
    every = asked.every or max(1, len(passed) // 60)
    print(f"\n### {name}, {dtype}: mutants of every {every}. case that we pass\n")
    mutants(passed, every, not asked.no_rivals, asked.list, asked.seed)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "corpora": _corpora,
    "reference": lambda asked: reference.main(),
    "cost": lambda asked: cost.main(),
}


if __name__ == "__main__":
    main()
