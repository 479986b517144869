"""Draws the pictures of ``docs/flow.md`` from checks that it runs: ``python docs/pictures.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from pytest_gradcheck import Result, check_flow

HERE = Path(__file__).parent
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by everybody (Okabe and Ito)
WIDE, HIGH, LEFT, TOP = 560, 260, 60, 30
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(1))


def network(act: Callable[[], nn.Module], gain: float = 1.0) -> Callable[[], nn.Module]:
    """Twelve layers of 64 with weights for ReLU, times a gain."""

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        for k in range(11):
            layer = nn.Linear(16 if k == 0 else 64, 64)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight.mul_(gain)
            parts += [layer, act()]
        return nn.Sequential(*parts, nn.Linear(64, 10))

    return make


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def flow(result: Result) -> list[float]:
    """Flow of the layers, in the order of the data."""
    table = result.table("layers")
    return [float(row[2] or math.nan) for row in table.rows] if table else []


def chart(lines: Sequence[tuple[str, Sequence[float]]], heading: str) -> str:
    """Lines of the logarithm over the layers, as SVG."""
    logs = [[math.log10(v) for v in values] for _, values in lines]
    low, high = math.floor(min(map(min, logs))), math.ceil(max(map(max, logs)))
    span = max(1, high - low)

    def at(n: int, count: int, log: float) -> str:
        x = LEFT + (WIDE - LEFT - 150) * n / max(1, count - 1)
        return f"{x:.1f},{TOP + (HIGH - TOP - 40) * (high - log) / span:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{HIGH}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">{heading}</text>',
    ]
    step = max(1, span // 5)
    for tick in range(low, high + 1, step):
        (x, y) = at(0, 2, tick).split(",")
        right = at(1, 2, tick)
        parts.append(f'<polyline points="{x},{y} {right}" stroke="#ddd" fill="none"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">1e{tick}</text>')
    for (name, _), values, colour in zip(lines, logs, COLOURS, strict=False):
        points = " ".join(at(n, len(values), log) for n, log in enumerate(values))
        parts.append(
            f'<polyline points="{points}" stroke="{colour}" fill="none" stroke-width="2"/>'
        )
        number = [n for n, _ in lines].index(name)
        parts.append(
            f'<text x="{WIDE - 140}" y="{TOP + 18 * (number + 1)}" fill="{colour}">{name}</text>'
        )
    parts.append(f'<text x="{LEFT}" y="{HIGH - 12}">first layer</text>')
    parts.append(f'<text x="{WIDE - 150}" y="{HIGH - 12}" text-anchor="end">last layer</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def pictures() -> dict[str, str]:
    """Each picture by its file name."""
    made = {
        "ReLU": network(nn.ReLU),
        "tanh": network(nn.Tanh),
        "sigmoid": network(nn.Sigmoid),
        "tanh, 5 x weights": network(nn.Tanh, 5.0),
    }
    lines = [
        (name, flow(check_flow(None, loss, (X, Y), make=make, seed=0)))
        for name, make in made.items()
    ]
    return {"flow-layers.svg": chart(lines, "flow of the gradient through twelve layers")}


if __name__ == "__main__":
    for file, text in pictures().items():
        (HERE / file).write_text(text, encoding="utf-8", newline="\n")
