"""Where the first value that is not finite is born in PyTorch, forward or backward.

Forward: the first operation whose inputs are finite and whose output is not. Backward: the first
node of the graph that is handed a finite gradient and returns one that is not. Anomaly mode sees
neither a birth in the forward nor an infinity (pytorch#160016).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_gradcheck.backends.layers import Origin
from pytest_gradcheck.backends.torch_flow import watched
from pytest_gradcheck.backends.torch_loss import Loss, alone, value_of

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_HOUSES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_SILENT = frozenset({"__get__", "__set__", "detach", "requires_grad_", "item", "isnan", "isfinite"})
_EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})
_BY_HAND = frozenset({"full", "full_like", "tensor", "masked_fill", "fill", "where"})
_WORSE = ("", "inf", "nan")  # NaN is born anew of infinities
Birth = tuple[str, str, str, str]  # module, operation, value, place


class _Ops(TorchFunctionMode):  # type: ignore[misc]  # torch is not typed
    """Remembers who made each node of the graph, and the first operation that bears a value."""

    def __init__(self, path: list[str]) -> None:
        super().__init__()
        self._path = path
        self.births: list[tuple[Birth, int]] = []
        self.makers: dict[Any, Birth] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        before = [t for t in _floats((args, kwargs or {})) if t.numel()]
        worst = max((_WORSE.index(_bad(t)) for t in before), default=0)
        nodes = {t.grad_fn for t in before}
        out = func(*args, **(kwargs or {}))
        if name in _SILENT:
            return out
        made = list(_floats(out))
        # In place, the inputs are overwritten: they were looked at before.
        value = next((v for t in made if (v := _bad(t))), "") if name not in _EMPTY else ""
        maker = (self._path[-1] if self._path else "", _plain(name), value, "")
        for t in made:
            self._note(t.grad_fn, nodes, maker)
        if _WORSE.index(value) > worst:
            self.births.append(((*maker[:3], _place()), len(self.births)))
        return out

    def _note(self, node: Any, known: set[Any], maker: Birth) -> None:
        pending = [node]
        while pending:
            here = pending.pop()
            if here is None or here in self.makers or here in known:
                continue
            if type(here).__name__ == "AccumulateGrad":
                continue
            if here not in self.makers:
                self.makers[here] = (*maker[:3], "")
            pending += [following for following, _ in here.next_functions]


def origin(model: nn.Module, loss: Loss, batch: Any) -> Origin | None:
    """The first birth, and how far it reaches; None where every value is finite."""
    path: list[str] = []
    ops = _Ops(path)
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad():
        for name, part, _ in watched(model):
            stack.callback(part.register_forward_pre_hook(_push(path, name)).remove)
            stack.callback(part.register_forward_hook(_pop(path)).remove)
        if not any(hasattr(part, "_orig_mod") for part in model.modules()):
            stack.enter_context(ops)
        value = value_of(loss, model, batch)
    lost = not bool(torch.isfinite(value.detach()))
    born, bad_gradients = _backward(model, value, ops)
    reaches = "loss" if lost else "gradient" if bad_gradients else "nothing"
    if lost and ops.births:
        where, op, what, place = ops.births[_culprit(ops.births)][0]
        return Origin(where=where, op=op, phase="forward", value=what, place=place, reaches="loss")
    if born is not None and reaches != "nothing":
        where, op, what, place = born
        return Origin(
            where=where, op=op, phase="backward", value=what, place=place, reaches=reaches
        )
    if ops.births:
        where, op, what, place = ops.births[0][0]
        return Origin(where=where, op=op, phase="forward", value=what, place=place, reaches=reaches)
    if lost:
        return Origin(where="", op="", phase="forward", value=_bad(value), reaches="loss")
    return None


def _culprit(births: Sequence[tuple[Birth, int]]) -> int:
    """The first birth that is no mask: an infinity put in by hand is born of nothing."""
    for number, ((_, op, value, _), _) in enumerate(births):
        if not (value == "inf" and op in _BY_HAND):
            return number
    return 0


def _backward(model: nn.Module, value: Tensor, ops: _Ops) -> tuple[Birth | None, bool]:
    """The first node that turns a finite gradient into another, and whether a parameter gets it."""
    born: list[Birth] = []
    if not value.requires_grad:
        return None, False
    handles = [node.register_hook(_look(node, ops, born)) for node in _nodes(value.grad_fn)]
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        pulled = alone(value, wanted)
    finally:
        for handle in handles:
            handle.remove()
    bad = any(g is not None and not bool(torch.isfinite(g).all()) for g in pulled)
    return (born[0] if born else None), bad


def _look(node: Any, ops: _Ops, born: list[Birth]) -> Any:
    def hook(returned: Any, handed: Any) -> None:
        if born or any(_bad(g) for g in handed if isinstance(g, Tensor)):
            return
        value = next((v for g in returned if isinstance(g, Tensor) and (v := _bad(g))), "")
        if value:
            where, op, _, place = ops.makers.get(node, ("", _node_name(node), "", ""))
            born.append((where, op, value, place))

    return hook


def _nodes(root: Any) -> Iterator[Any]:
    seen: set[Any] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending += [following for following, _ in node.next_functions]


def _node_name(node: Any) -> str:
    return type(node).__name__.rstrip("0123456789").removesuffix("Backward").lower()


def _plain(name: str) -> str:
    dunder = {"__truediv__": "div", "__rtruediv__": "div", "__rdiv__": "div", "__pow__": "pow"}
    dunder |= {"__rpow__": "pow", "__rsub__": "sub"}
    name = dunder.get(name, name)
    return name.strip("_") if name.startswith("__") else name.removesuffix("_")


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.layout == torch.strided:
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floats(item)
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))


def _bad(x: Tensor) -> str:
    with torch.no_grad():
        x = x.detach()
        if x.layout != torch.strided or not x.is_floating_point() or bool(torch.isfinite(x).all()):
            return ""
        return "nan" if bool(torch.isnan(x).any()) else "inf"


def _push(path: list[str], name: str) -> Any:
    return lambda module, args: path.append(name)


def _pop(path: list[str]) -> Any:
    def leave(module: nn.Module, args: Any, output: Any) -> None:
        path.pop()

    return leave


def _place() -> str:
    """``file:line`` of the user's code that called the operation."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HOUSES):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""
