"""How the gradient changes over the time steps of PyTorch's fused recurrent layers.

Their states are inside one operation; what can be seen is the gradient with respect to the input at
each step, which reaches back through the states of all later ones, and that with respect to the
output at each step, which the loss places there itself. Their quotient, at the last step that a
direction runs through, is what a step does by itself; what is beyond it, further back, comes from
the recurrence. Where two directions run, each adds to the gradient of the input at both ends:
unless it is the same everywhere, a copy of the layer whose other direction forgets shows each one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pytest_gradcheck.backends import torch_input
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

LEAST = 4  # time steps
EVEN = 3.0  # largest over least gradient of the input, at which nothing grows or fades


@dataclass(slots=True)
class _Seen:
    """Norms of gradients of one layer, at each time step.

    Args:
        axis, width: Axis of time, and number of features that each direction puts out.
        given: With respect to the input.
        part, args: The layer, and what it was called with.
        counts: Samples at each step of a packed batch; None where all have as many.
        placed: Squares of those with respect to what each direction puts out.
        pulled: Those with respect to output and states, by their number.
    """

    axis: int
    width: int
    part: nn.RNNBase
    args: tuple[Any, ...]
    counts: Tensor | None = None
    given: Tensor | None = None
    placed: dict[int, Tensor] = field(default_factory=dict)
    pulled: dict[int, Tensor] = field(default_factory=dict)


class Times:
    """Gradients at the time steps of each recurrent layer."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self.leaves: list[Tensor] = []  # inputs that have no gradient by themselves

    def watch(self, name: str, part: nn.RNNBase) -> Callable[[], None]:
        """Look at a layer's input and output until what is returned is called."""

        def enter(module: nn.Module, args: Any) -> Any:
            packed = args[0] if isinstance(args[0], PackedSequence) else None
            x = args[0] if packed is None else packed.data
            if not isinstance(x, Tensor) or x.ndim != (3 if packed is None else 2):
                return None
            if not torch.is_grad_enabled():
                return None
            x = x if x.requires_grad else self._recorded(x)
            axis = 1 if part.batch_first and packed is None else 0
            counts = None if packed is None else packed.batch_sizes
            given = (x if packed is None else packed._replace(data=x), *args[1:])
            steps = x.shape[axis] if counts is None else len(counts)
            if steps >= LEAST and name not in self._seen:
                width = part.proj_size or part.hidden_size
                seen = self._seen[name] = _Seen(axis, width, part, given, counts)
                x.register_hook(lambda g: _given(seen, g))
            return given

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
    seen.given = _squares(gradient, seen).sqrt()


def _squares(gradient: Tensor, seen: _Seen) -> Tensor:
    """Sum of squares at each step; of packed samples their mean, since fewer and fewer are left."""
    wide = gradient.detach().double().square()
    if seen.counts is None:
        return wide.sum([n for n in range(wide.ndim) if n != seen.axis])
    parts = wide.sum(1).split(seen.counts.tolist())
    return torch.stack([part.mean() for part in parts])


def _outputs(seen: _Seen, output: Any, directions: int) -> None:
    """Look at what the loss places on the output at each step, and on the states at the end."""
    out, states = output
    out = out.data if seen.counts is not None else out
    lasts = _lasts(seen, out)

    def placed(gradient: Tensor) -> None:
        _keep(seen, 0, gradient)
        for n, part in enumerate(gradient.split(seen.width, -1)):
            _add(seen, n, _squares(part, seen))

    def left(number: int, gradient: Tensor) -> None:
        _keep(seen, number, gradient)
        for n in range(directions):
            squares = gradient.detach()[n::directions].double().square().sum((0, -1))
            ends = torch.zeros(int(lasts.max()) + 1, dtype=squares.dtype, device=squares.device)
            ends.index_add_(0, torch.zeros_like(lasts) if n else lasts, squares.reshape(-1))
            _add(seen, n, ends if seen.counts is None else ends / seen.counts.to(ends.device))

    if out.requires_grad:
        out.register_hook(placed)
    for number, state in enumerate(states if isinstance(states, tuple) else (states,), 1):
        if state.requires_grad:
            state.register_hook(functools.partial(left, number))


def _lasts(seen: _Seen, out: Tensor) -> Tensor:
    """The last step of each sample."""
    if seen.counts is None:
        return torch.full((out.shape[1 - seen.axis],), out.shape[seen.axis] - 1, device=out.device)
    samples = torch.arange(int(seen.counts[0]), device=seen.counts.device)
    lasts = (seen.counts[None] > samples[:, None]).sum(1) - 1
    order = seen.args[0].unsorted_indices
    return lasts.to(out.device) if order is None else lasts.to(out.device)[order]


def _keep(seen: _Seen, number: int, gradient: Tensor) -> None:
    if seen.part.bidirectional:
        seen.pulled[number] = gradient.detach()


def _add(seen: _Seen, direction: int, squares: Tensor) -> None:
    seen.placed[direction] = squares + seen.placed.get(direction, 0.0)


def _changes(seen: _Seen) -> Iterator[float]:
    """That of each direction whose output the loss feels; nothing where none is known.

    A gradient at the first step beyond that at the last one counts as growth as far as it is
    beyond what the loss places on any step, over what it places on the last.
    """
    if seen.given is None or not seen.placed:
        return
    both = seen.given.tolist(), sum(seen.placed.values()).sqrt().tolist()
    is_one = not seen.part.bidirectional or seen.counts is not None
    is_even = is_one or max(both[0]) <= EVEN * min(both[0])
    for direction, squares in seen.placed.items():
        given, total = both if is_even else _alone(seen, direction) or both
        order = list(range(len(given)))[:: -1 if direction else 1]
        felt = [n for n in order if float(squares[n]) > 0]
        if len(felt) == 0 or order.index(felt[-1]) < LEAST - 1:
            continue  # too few steps lie before it
        first, last = given[order[0]], given[felt[-1]]
        sizes = (first, last, total[felt[-1]], max(total))
        if all(0 < size < math.inf for size in sizes):
            a, b, c, d = map(math.log10, sizes)
            yield a - b + c - d


def _alone(seen: _Seen, direction: int) -> tuple[list[float], list[float]] | None:
    """Norms with respect to input and output where one direction alone remembers and is read.

    None where the layer has no copies.
    """
    try:
        part = torch_input.copied(seen.part)
    except UsageError:
        return None
    part._forward_hooks.clear()
    part._forward_pre_hooks.clear()
    part.dropout = 0.0  # draws nothing
    x = seen.args[0].detach().requires_grad_()
    with torch.no_grad():
        for name, p in part.named_parameters():
            if "weight_hh" in name and ("_reverse" in name) != bool(direction):
                p.zero_()
    with torch.enable_grad():
        out, states = part(x, *torch_input.detached(seen.args[1:]))
        ends = (out, *(states if isinstance(states, tuple) else (states,)))
        pulled = [_of(direction, seen.width, n, g) for n, g in seen.pulled.items()]
        (gradient,) = torch.autograd.grad([ends[n] for n in seen.pulled], x, pulled)
    placed = seen.placed[direction].sqrt().tolist()
    return _squares(gradient, seen).sqrt().tolist(), placed


def _of(direction: int, width: int, number: int, gradient: Tensor) -> Tensor:
    """What is placed on one direction of the output (number 0) or of states."""
    kept = torch.zeros_like(gradient)
    if number:
        kept[direction::2] = gradient[direction::2]
    else:
        side = slice(width, None) if direction else slice(width)
        kept[..., side] = gradient[..., side]
    return kept
