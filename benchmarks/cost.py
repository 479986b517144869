"""What a check costs: beside one forward and backward, as models grow, and to find one element.

Run: ``python benchmarks/cost.py``; one thread, CPU time. ``torch.autograd.gradcheck`` in its fast
mode gets the same models in the same run, over their parameters by ``functional_call``. Its slow
mode is left out: it needs two evaluations for each parameter. Where there is a GPU: a model of
1e8 parameters in one check, with its peak memory.
"""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from corpora.identities import Scaled
from torch import nn

from pytest_gradcheck import check_gradient

LAYERS = 16  # two parameters each
BATCH = 128
ROUNDS = 3
SEEDS = 7  # of directions: what they cross decides on how many steps are taken
WIDTHS = (64, 128, 256, 512, 1024)
ELEMENTS = 1_000_000
KINDS = [(nn.Tanh, "kaiming"), (nn.ReLU, "kaiming"), (nn.Tanh, "default"), (nn.ReLU, "default")]
SMALL = 24  # width at which torch's fast mode can show, by whole Jacobians, why it says no


def mlp(width: int, activation: type[nn.Module], start: str, dtype: torch.dtype) -> nn.Module:
    """16 linear layers; ``start``: ``default`` (gradients fade) or ``kaiming`` (they do not)."""
    torch.manual_seed(0)
    layers = [part for _ in range(LAYERS) for part in (nn.Linear(width, width), activation())]
    model = nn.Sequential(*layers[:-1])
    for parameter in model.parameters():
        if start == "kaiming" and parameter.ndim == 2:
            nn.init.kaiming_normal_(parameter, nonlinearity=activation.__name__.lower())
    return model.to(dtype)


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Mean square of the output."""
    return model(x).square().mean()


class Wrong(nn.Linear):
    """A layer whose weight gets the wrong sign."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, Scaled.apply(self.weight, -1.0), self.bias)


def seconds(run: Callable[[], Any]) -> float:
    """The least CPU time of some runs, after one that is not counted."""
    run()
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def training_pass(model: nn.Module, x: torch.Tensor) -> None:
    """One forward and backward."""
    model.zero_grad()
    loss(model, x).backward()


def torch_fast(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether torch's fast mode agrees with a model's gradients."""
    names = [name for name, _ in model.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def of_parameters(*given: torch.Tensor) -> torch.Tensor:
        own = dict(zip(names, given, strict=True))
        return torch.func.functional_call(model, own, (x,)).square().mean()

    try:
        return torch.autograd.gradcheck(of_parameters, values, fast_mode=True)
    except RuntimeError:
        return False


def models() -> None:
    """Table: cost in forward-and-backward passes."""
    print(
        "| model | precision | ours, median of seeds | most | evaluations | verdict | would show | "
        "torch fast | says |\n|---|---|---|---|---|---|---|---|---|"
    )
    for width in (128, 512):
        for activation, start in KINDS:
            for dtype in (torch.float64, torch.float32):
                print(_row(width, activation, start, dtype), flush=True)


def _row(width: int, activation: type[nn.Module], start: str, dtype: torch.dtype) -> str:
    model, x = mlp(width, activation, start, dtype), torch.randn(BATCH, width, dtype=dtype)
    one = seconds(lambda: training_pass(model, x))
    ours, found = [], []
    for seed in range(SEEDS):
        check = functools.partial(check_gradient, loss, model, x, wrt="model", seed=seed)
        ours.append(seconds(check) / one)
        found.append(check())
    # In float32 it says no, and then builds whole Jacobians to show why.
    rival = "- | -"
    if dtype == torch.float64:
        fast = seconds(lambda: torch_fast(model, x)) / one
        rival = f"{fast:.1f}x | {'pass' if torch_fast(model, x) else 'fail'}"
    size = sum(p.numel() for p in model.parameters())
    coarsest = [max(row[1] for row in each.table("resolution").rows) for each in found]
    evaluations = sorted(each.context.evaluations for each in found)
    return (
        f"| {activation.__name__}, {start}, {size / 1e6:.2f} M | {str(dtype)[6:]} | "
        f"{statistics.median(ours):.1f}x | {max(ours):.1f}x | {evaluations[SEEDS // 2]} | "
        f"{', '.join(sorted({each.verdict for each in found}))} | "
        f"{statistics.median(coarsest):.2g} | {rival} |"
    )


def signs() -> None:
    """Table: who sees that the first layer's weight has the wrong sign."""
    print("\n| first layer wrong in sign | its part of the gradient | ours | torch fast |")
    print("|---|---|---|---|")
    for activation, start in KINDS:
        model = mlp(SMALL, activation, start, torch.float64)
        x = torch.randn(BATCH, SMALL, dtype=torch.float64)
        training_pass(model, x)
        norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
        model[0].__class__ = Wrong
        ours = check_gradient(loss, model, x, wrt="model")
        fast = "pass" if torch_fast(model, x) else "fail"
        print(
            f"| {activation.__name__}, {start} | {norms[0] / sum(n * n for n in norms) ** 0.5:.1g} "
            f"| {ours.verdict} | {fast} |",
            flush=True,
        )


def growth() -> None:
    """Table: cost as the model grows."""
    print("\n| parameters | forward and backward, ms | check / forward and backward |")
    print("|---|---|---|")
    for width in WIDTHS:
        model = mlp(width, nn.Tanh, "kaiming", torch.float64)
        x = torch.randn(BATCH, width, dtype=torch.float64)
        one = seconds(lambda m=model, x=x: training_pass(m, x))
        ours = seconds(lambda m=model, x=x: check_gradient(loss, m, x, wrt="model"))
        size = sum(p.numel() for p in model.parameters())
        print(f"| {size:,} | {1e3 * one:.1f} | {ours / one:.1f}x |", flush=True)


FACTORS = {"x1.5": 1.5, "x1.05": 1.05, "zero": 0.0, "sign": -1.0}


def needles() -> Iterator[tuple[str, str, Any]]:
    """Framework, mistake and result of checks with one wrong element among a million."""
    weights = np.arange(1, ELEMENTS + 1) / ELEMENTS
    for number, (name, factor) in enumerate(FACTORS.items()):
        spot = int(np.random.default_rng(number).integers(ELEMENTS))

        def slope(x: np.ndarray, spot: int = spot, factor: float = factor) -> np.ndarray:
            gradient = np.cos(x) * weights
            gradient[spot] *= factor
            return gradient

        x = np.random.default_rng(0).normal(size=ELEMENTS)
        result = check_gradient(lambda x: np.sum(np.sin(x) * weights), x, grad=slope)
        yield "numpy", name, (result, f"x[{spot}]")
        image = torch.randn(1000, 1000, dtype=torch.float64)
        result = check_gradient(_tanh(spot, factor).apply, image, label="tanh")
        yield "torch", name, (result, f"x[{spot // 1000}, {spot % 1000}]")


def _tanh(spot: int, factor: float) -> Any:
    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            gradient = w * (1 - x.tanh() ** 2)
            gradient.view(-1)[spot] *= factor
            return gradient

    return Tanh


def elements() -> None:
    """Table: forwards until one wrong element among a million is named."""
    print("\n| one wrong element of 1e6 | forwards | derivatives | verdict | named rightly |")
    print("|---|---|---|---|---|")
    for framework, name, (result, where) in needles():
        named = result.verdict == "fail" and result.findings[0].where == where
        context = result.context
        print(
            f"| {framework}, {name} | {context.evaluations} | {context.derivatives} | "
            f"{result.verdict} | {'yes' if named else result.headline} |",
            flush=True,
        )


def gpu() -> None:
    """Table: a model of 1e8 parameters on a GPU, with TF32 off and on."""
    print("\n| 1e8 parameters on CUDA | check / pass | peak / model | verdict | would show |")
    print("|---|---|---|---|---|")
    for dtype, tf32 in ((torch.float32, False), (torch.float32, True), (torch.float64, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        model = mlp(2500, nn.Tanh, "kaiming", dtype).cuda()
        x = torch.randn(BATCH, 2500, dtype=dtype, device="cuda")
        one = _synchronised(lambda m=model, x=x: training_pass(m, x))
        model.zero_grad(set_to_none=True)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found: list[Any] = []
        ours = _synchronised(
            lambda m=model, x=x, all=found: all.append(check_gradient(loss, m, x, wrt="model"))
        )
        peak = torch.cuda.max_memory_allocated() / held
        result = found[-1]
        shown = result.table("resolution").rows if result.verdict == "pass" else ()
        coarsest = f"{max(row[1] for row in shown):.2g}" if shown else result.headline
        print(
            f"| {str(dtype)[6:]}, TF32 {'on' if tf32 else 'off'} | {ours / one:.1f}x | {peak:.1f}x "
            f"| {result.verdict} | {coarsest} |",
            flush=True,
        )


def _synchronised(run: Callable[[], Any]) -> float:
    run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Print every table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    models()
    signs()
    growth()
    elements()
    if torch.cuda.is_available():
        gpu()


if __name__ == "__main__":
    main()
