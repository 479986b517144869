"""PyTorch's own operator database, true gradients: verdicts and time beside torch's two modes.

Run: ``python benchmarks/operators.py [--list]``; one thread, float64, the first sample of each
differentiable operator. Every checker gets the same functions and inputs, with default arguments,
in one run; the database's own wrappers keep inputs symmetric or positive where an operator asks
for it. A case counts as an alarm when the checker raises or says that the gradient is wrong.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import gradcheck as torch_gradcheck
from torch.testing._internal.common_methods_invocations import op_db

from pytest_gradcheck import check_gradient


def cases():
    """Pairs of operator name and (function of tensors, tensors)."""
    for op in op_db:
        if not op.supports_autograd or torch.float64 not in op.supported_dtypes("cpu"):
            continue
        samples = op.sample_inputs("cpu", torch.float64, requires_grad=True)
        split = next((s for s in (_split(op, sample) for sample in samples) if _is_usable(s)), None)
        if split is not None:
            yield f"{op.name}.{op.variant_test_name}".rstrip("."), split


def _is_usable(split: tuple[Callable[..., Any], list[torch.Tensor]]) -> bool:
    # An array without elements is a usage error for us and a silent pass for the others.
    return any(tensor.numel() for tensor in split[1])


def _split(op: Any, sample: Any) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    flat, spec = torch.utils._pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    spots = [i for i, x in enumerate(flat) if isinstance(x, torch.Tensor) and x.requires_grad]

    def function(*tensors: torch.Tensor) -> Any:
        filled = list(flat)
        for spot, tensor in zip(spots, tensors, strict=True):
            filled[spot] = tensor
        first, args, kwargs = torch.utils._pytree.tree_unflatten(filled, spec)
        output = op.gradcheck_wrapper(op.get_op(), first, *args, **kwargs)
        return sample.output_process_fn_grad(output)

    return function, [flat[i] for i in spots]


def _ours(function: Callable[..., Any], inputs: list[torch.Tensor]) -> str:
    return check_gradient(function, *inputs, backend="torch").verdict


def _torch(fast: bool) -> Callable[[Callable[..., Any], list[torch.Tensor]], str]:
    def check(function: Callable[..., Any], inputs: list[torch.Tensor]) -> str:
        return "pass" if torch_gradcheck(function, inputs, fast_mode=fast) else "fail"

    return check


def run(check: Callable[..., str], found: list[Any]) -> tuple[list[str], float]:
    """Verdict of each case, ``error`` where the checker raised, and seconds in all."""
    verdicts, seconds = [], 0.0
    for _, (function, inputs) in found:
        torch.manual_seed(0)
        began = time.perf_counter()
        try:
            verdict = check(function, inputs)
        except Exception as error:  # a checker may raise anything; it counts
            verdict = f"error {type(error).__name__}: {str(error).splitlines()[0][:90]}"
        seconds += time.perf_counter() - began
        verdicts.append(verdict)
    return verdicts, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name every case that is not a pass")
    listing = parser.parse_args().list
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = list(cases())
    checkers = {
        "pytest-gradcheck": _ours,
        "torch slow": _torch(fast=False),
        "torch fast": _torch(fast=True),
    }
    run(_ours, found[:5])  # imports and first-use costs are not what is compared
    results = {name: run(check, found) for name, check in checkers.items()}
    slow = results["torch slow"][1]
    print(f"{len(found)} operators, float64, torch {torch.__version__}, one thread\n")
    print("| checker | pass | fail | undecided | vacuous | error | time / torch slow |")
    print("|---|---|---|---|---|---|---|")
    for name, (verdicts, seconds) in results.items():
        n = Counter(verdict.split()[0] for verdict in verdicts)
        cells = [n[key] for key in ("pass", "fail", "undecided", "vacuous", "error")]
        print(f"| {name} | " + " | ".join(map(str, cells)) + f" | {seconds / slow:.2f} |")
    if listing:
        for name, (verdicts, _) in results.items():
            print(f"\n{name}, not a pass:")
            for (case, _), verdict in zip(found, verdicts, strict=True):
                if verdict != "pass":
                    print(f"  {case}: {verdict}")


if __name__ == "__main__":
    main()
