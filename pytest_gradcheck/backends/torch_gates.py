"""Gates of PyTorch's fused recurrent layers, which are inside one operation.

What each gate is given follows from the inputs and the outputs of a layer, for all time steps at
once; layers that are stacked are run one by one to have both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends.layers import FLAT

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def saturated(part: nn.RNNBase, x: Any) -> Tensor | None:
    """Share of gates whose mean slope is under 1 % of the largest, of the layer that has most.

    None where that is not known.

    Args:
        part: A layer that begins with a state of zeros.
        x: Its input, of shape (time, batch, features) or as ``batch_first`` has it.
    """
    kind = type(part).__name__
    is_plain = isinstance(x, Tensor) and x.ndim == 3 and not part.proj_size
    if kind not in _GATES or not is_plain or part.mode == "RNN_RELU":
        return None
    with torch.no_grad(), torch._C.DisableTorchFunction():
        x = x.detach().transpose(0, 1) if part.batch_first else x.detach()
        means = [torch.cat([s.double().mean((0, 1)) for s in one]) for one in _layers(part, x)]
        return torch.stack([(mean < FLAT).double().mean() for mean in means]).max()


def of_cell(cell: nn.RNNCellBase, x: Any, state: Any = None) -> Tensor | None:
    """Share of gates of one step whose mean slope is under 1 % of the largest; None if not known.

    Args:
        cell: An ``LSTMCell``, ``GRUCell`` or ``RNNCell``.
        x: Its input, of shape (batch, features).
        state: Its state before, in the cell's own form; None for zeros.
    """
    kind = type(cell).__name__.removesuffix("Cell")
    before = state[0] if isinstance(state, (tuple, list)) else state
    is_plain = isinstance(x, Tensor) and x.ndim == 2 and isinstance(before, Tensor | None)
    if kind not in _GATES or not is_plain or getattr(cell, "nonlinearity", "tanh") != "tanh":
        return None
    with torch.no_grad(), torch._C.DisableTorchFunction():
        before = x.new_zeros(len(x), cell.hidden_size) if before is None else before
        biases = [cell.bias_ih, cell.bias_hh] if cell.bias else [x.new_zeros(())] * 2
        slopes = _slopes(kind, x, before, [cell.weight_ih, cell.weight_hh], biases)
        means = torch.cat([s.double().mean(0) for s in slopes])
        return (means < FLAT).double().mean()


def _layers(part: nn.RNNBase, x: Tensor) -> Iterator[list[Tensor]]:
    """Slopes of the gates of each layer and direction, over the largest they can be."""
    for layer in range(part.num_layers):
        outs = []
        for suffix in ("", "_reverse") if part.bidirectional else ("",):
            weights = [getattr(part, f"{n}_l{layer}{suffix}") for n in ("weight_ih", "weight_hh")]
            names = [f"{n}_l{layer}{suffix}" for n in ("bias_ih", "bias_hh")]
            biases = [getattr(part, n) for n in names] if part.bias else [x.new_zeros(())] * 2
            given = x.flip(0) if suffix else x
            out = _run(part, given, weights, biases)
            before = torch.cat([torch.zeros_like(out[:1]), out[:-1]])
            yield _slopes(type(part).__name__, given, before, weights, biases)
            outs.append(out.flip(0) if suffix else out)
        x = torch.cat(outs, -1)


def _run(part: nn.RNNBase, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Outputs of one layer in one direction."""
    state = x.new_zeros(1, x.shape[1], part.hidden_size)
    flat = [*weights, *(biases if part.bias else [])]
    run = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh}[part.mode]
    start = (state, state) if part.mode == "LSTM" else state
    made: Tensor = run(x, start, flat, part.bias, 1, 0.0, False, False, False)[0]
    return made


def _slopes(
    kind: str, x: Tensor, before: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> list[Tensor]:
    """That of each gate, over 1/4 for a sigmoid (equations of ``nn.LSTM`` and ``nn.GRU``)."""
    fed, carried = x @ weights[0].T + biases[0], before @ weights[1].T + biases[1]
    if kind == "RNN":
        return [_of_tanh(fed + carried)]
    parts = list(zip(fed.chunk(_GATES[kind], -1), carried.chunk(_GATES[kind], -1), strict=True))
    if kind == "LSTM":
        i, f, g, o = (a + b for a, b in parts)
        return [_of_sigmoid(i), _of_sigmoid(f), _of_tanh(g), _of_sigmoid(o)]
    (r, z), (a, b) = (a + b for a, b in parts[:2]), parts[2]
    return [_of_sigmoid(r), _of_sigmoid(z), _of_tanh(a + torch.sigmoid(r) * b)]


def _of_sigmoid(z: Tensor) -> Tensor:
    return 4 * torch.sigmoid(z) * torch.sigmoid(-z)


def _of_tanh(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z).square()
