"""How the gradient changes over the time steps of PyTorch's fused recurrent layers.

Their states are inside one operation; what can be seen is the gradient with respect to the input at
each step, which reaches back through the states of all later ones, and that with respect to the
output at each step, which the loss places there itself. Their quotient, at the last step that a
direction runs through, is what a step does by itself; what is beyond it, further back, comes from
the recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

LEAST = 4  # time steps


@dataclass(slots=True)
class _Seen:
    """Norms of gradients of one layer, at each time step.

    Args:
        axis, width: Axis of time, and number of features that each direction puts out.
        given: With respect to the input.
        placed: Squares of those with respect to what each direction puts out.
    """

    axis: int
    width: int
    given: Tensor | None = None
    placed: dict[int, Tensor] = field(default_factory=dict)


class Times:
    """Gradients at the time steps of each recurrent layer."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self.leaves: list[Tensor] = []  # inputs that have no gradient by themselves

    def watch(self, name: str, part: nn.RNNBase) -> Callable[[], None]:
        """Look at a layer's input and output until what is returned is called."""

        def enter(module: nn.Module, args: Any) -> Any:
            x = args[0]
            if not isinstance(x, Tensor) or x.ndim != 3 or not torch.is_grad_enabled():
                return None
            x = x if x.requires_grad else self._recorded(x)
            axis = 1 if part.batch_first else 0
            if x.shape[axis] >= LEAST and name not in self._seen:
                seen = self._seen[name] = _Seen(axis, part.proj_size or part.hidden_size)
                x.register_hook(lambda g: _given(seen, g))
            return (x, *args[1:])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            seen = self._seen.get(name)
            if seen is not None and not calls:
                calls.append(name)
                _outputs(seen, output, 2 if part.bidirectional else 1)

        calls: list[str] = []  # a layer that is called again shows its first call
        handles = part.register_forward_pre_hook(enter), part.register_forward_hook(leave)

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    def _recorded(self, x: Tensor) -> Tensor:
        self.leaves.append(x.detach().requires_grad_())
        return self.leaves[-1].clone()  # not the leaf itself: it may be written into

    def fades(self) -> tuple[tuple[str, float], ...]:
        """Log10 of the change from the last step to the first, by layer.

        Steps count in the order of the direction; of two directions it is the larger change.
        """
        both = {name: list(_changes(seen)) for name, seen in self._seen.items()}
        return tuple((name, max(known)) for name, known in both.items() if known)


def _given(seen: _Seen, gradient: Tensor) -> None:
    seen.given = _squares(gradient, seen.axis).sqrt()


def _squares(gradient: Tensor, axis: int) -> Tensor:
    """Sum of squares at each step."""
    wide = gradient.detach().double().square()
    return wide.sum([n for n in range(wide.ndim) if n != axis])


def _outputs(seen: _Seen, output: Any, directions: int) -> None:
    """Look at what the loss places on the output at each step, and on the states at the end."""
    out, states = output
    steps = out.shape[seen.axis]

    def placed(gradient: Tensor) -> None:
        for n, part in enumerate(gradient.split(seen.width, -1)):
            _add(seen, n, _squares(part, seen.axis))

    def left(gradient: Tensor) -> None:
        for n in range(directions):
            square = gradient.detach()[n::directions].double().square().sum()
            ends = torch.zeros(steps, dtype=square.dtype, device=square.device)
            ends[0 if n else -1] = square
            _add(seen, n, ends)

    if out.requires_grad:
        out.register_hook(placed)
    for state in states if isinstance(states, tuple) else (states,):
        if state.requires_grad:
            state.register_hook(left)


def _add(seen: _Seen, direction: int, squares: Tensor) -> None:
    seen.placed[direction] = squares + seen.placed.get(direction, 0.0)


def _changes(seen: _Seen) -> Iterator[float]:
    """That of each direction whose output the loss feels; nothing where none is known.

    A gradient at the first step beyond that at the last one counts as growth as far as it is
    beyond what the loss places on any step, over what it places on the last.
    """
    if seen.given is None or not seen.placed:
        return
    given, total = seen.given.tolist(), sum(seen.placed.values()).sqrt().tolist()
    for direction, squares in seen.placed.items():
        order = list(range(len(given)))[:: -1 if direction else 1]
        felt = [n for n in order if float(squares[n]) > 0]
        if len(felt) == 0 or order.index(felt[-1]) < LEAST - 1:
            continue  # too few steps lie before it
        first, last = given[order[0]], given[felt[-1]]
        sizes = (first, last, total[felt[-1]], max(total))
        if all(0 < size < math.inf for size in sizes):
            a, b, c, d = map(math.log10, sizes)
            yield a - b + c - d
