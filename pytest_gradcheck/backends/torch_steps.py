"""PyTorch: a training step that runs as it is, watched through the hooks of its optimizer."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradcheck.backends import torch_events, torch_optimizers, tree
from pytest_gradcheck.backends.held import held_bindings
from pytest_gradcheck.backends.protocol import Leaf
from pytest_gradcheck.backends.state import reachable
from pytest_gradcheck.backends.steps import Call, Tracked, Training, Update, scalar, takes
from pytest_gradcheck.backends.torch_state import generators, guard
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class TorchLoop:
    """A model, its optimizers and the user's step.

    Args:
        training: The parts.
    """

    name = "torch"
    can_see = True
    doubt = 0.0
    accumulate = 1
    dtype = "float64"

    def __init__(self, training: Training) -> None:
        self._training = training
        self._model = training.model
        if self._model is None:
            raise UsageError("Training.model is missing: the module that the step trains")
        self._optimizers = torch_optimizers.listed(training.optimizer)
        self._roots = (training.step, training.loss, self._model, *self._optimizers)
        self._generators = generators(list(reachable(self._roots)))
        self._modes = [(m, m.training) for m in self._model.modules()]
        self._tensors, self.parameters = self._found()
        if not self._tensors:
            raise UsageError("Training.model has no parameters")
        first = self._optimizers[0] if self._optimizers else None
        self.optimizer = torch_optimizers.NAMES.get(type(first), "")
        self.shown = type(first).__name__ if first is not None else "no optimizer"
        self.device = str(self._tensors[0].device)
        self._takes_model = takes(training.loss, 1) == 2

    def _found(self) -> tuple[list[Tensor], list[Tracked]]:
        tensors: dict[int, tuple[str, Tensor]] = {}
        for name, p in self._model.named_parameters():
            tensors.setdefault(id(p), (name, p))
        held: dict[int, int] = {}
        for i, optimizer in enumerate(self._optimizers):
            for j, group in enumerate(torch_optimizers.groups(optimizer)):
                for k, p in enumerate(group["params"]):
                    held[id(p)] = held.get(id(p), 0) + 1
                    tensors.setdefault(id(p), (f"optimizer.{i}.{j}.{k}", p))
        known = bool(held)
        pairs = list(tensors.values())
        shadows = _shadows(pairs, held)
        tracked = []
        for i, (name, p) in enumerate(pairs):
            owners = held.get(id(p), 0)
            if i in shadows.values():  # its master copy is what is optimized
                owners = max(owners, 1)
            shown = f"{pairs[shadows[i]][0]} (master copy)" if i in shadows else name
            tracked.append(
                Tracked(
                    name=shown,
                    dtype=str(p.dtype).removeprefix("torch."),
                    trainable=bool(p.requires_grad),
                    owners=owners if known else None,
                    shadow=shadows.get(i, -1),
                )
            )
        return [p for _, p in pairs], tracked

    # --- what is there ----------------------------------------------------------------------

    def _now(self) -> list[np.ndarray]:
        return [_numpy(p) for p in self._tensors]

    def mark(self) -> list[Any]:
        """The state of all generators."""
        return [g.get() for g in self._generators]

    def _rewind(self, mark: Sequence[Any]) -> None:
        for generator, state in zip(self._generators, mark, strict=True):
            generator.set(state)

    def _hyper(self, optimizer: Any) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for group in torch_optimizers.groups(optimizer):
            for p in group["params"]:
                found[id(p)] = torch_optimizers.hyper(group)
        return [found.get(id(p), {}) for p in self._tensors]

    # --- the user's step --------------------------------------------------------------------

    def call(self, batch: Any) -> Call:
        """Call the step with a copy of the batch, and note what happens inside."""
        handed = _copied(batch)
        before = self._now()
        updates: list[Update] = []
        events: list[tuple[str, float]] = []
        error = ""

        def note(word: str, number: float) -> None:
            events.append((word, number))

        with ExitStack() as stack:
            stack.enter_context(torch_events.seen(self._roots, note))
            for i, optimizer in enumerate(self._optimizers):
                watch = _Watch(self, optimizer, i, updates, note)
                stack.enter_context(watch.open())
            try:
                self._training.step(handed)
            except Exception as caught:  # whatever the user's code raises is what is to be judged
                error = f"{type(caught).__name__}: {caught}"
        after = self._now()
        if not self._optimizers and any(
            not np.array_equal(a, b) for a, b in zip(before, after, strict=True)
        ):
            updates.append(Update(before, after, None, [{}] * len(before)))
        changed = not _is_same(batch, handed)
        return Call(before, after, updates, events, changed, error)

    def received(self) -> list[np.ndarray | None]:
        """The gradients that lie at the parameters now."""
        return [None if p.grad is None else _numpy(p.grad) for p in self._tensors]

    # --- the loss ---------------------------------------------------------------------------

    def _loss(self, batch: Any) -> Tensor:
        handed = _copied(batch)
        if self._takes_model:
            return torch.as_tensor(scalar(self._training.loss(self._model, handed)))
        return torch.as_tensor(scalar(self._training.loss(handed)))

    @contextmanager
    def _placed(self, at: Sequence[np.ndarray] | None, mark: Sequence[Any]) -> Iterator[None]:
        """Other parameters, the mode at hand-over and a mark of the generators, for a while."""
        kept = [p.detach().clone() for p in self._tensors] if at is not None else []
        buffers = [(b, b.detach().clone()) for b in self._model.buffers()]
        modes = [(m, m.training) for m in self._model.modules()]
        now = self.mark()
        try:
            for module, mode in self._modes:
                module.training = mode
            for p, value in zip(self._tensors, at or (), strict=False):
                p.data.copy_(torch.from_numpy(np.asarray(value)))
            self._rewind(mark)
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self._tensors, kept, strict=False):
                    p.data.copy_(value)
                for buffer, value in buffers:
                    buffer.copy_(value)
            for module, mode in modes:
                module.training = mode
            self._rewind(now)

    def gradient(
        self, batch: Any, at: Sequence[np.ndarray] | None, mark: Any
    ) -> tuple[float, list[np.ndarray | None]]:
        """Loss and gradient; that of a parameter with a master copy is given to the copy alone."""
        with self._placed(at, mark), torch.enable_grad():
            wanted = [p for p in self._tensors if p.requires_grad]
            value = self._loss(batch)
            self.dtype = str(value.dtype).removeprefix("torch.")
            grads: Sequence[Tensor | None] = [None] * len(wanted)
            if value.requires_grad:
                grads = torch.autograd.grad(value, wanted, allow_unused=True)
        found = {id(p): g for p, g in zip(wanted, grads, strict=True)}
        arrays = [
            None if (g := found.get(id(p))) is None else _numpy(g.to_dense() if g.is_sparse else g)
            for p in self._tensors
        ]
        for i, tracked in enumerate(self.parameters):
            if tracked.shadow >= 0:
                arrays[i], arrays[tracked.shadow] = arrays[tracked.shadow], None
        return float(value.detach()), arrays

    def value(self, batch: Any, at: Sequence[np.ndarray], mark: Any) -> float:
        """The loss at other parameters."""
        with self._placed(at, mark), torch.no_grad():
            return float(self._loss(batch))

    def joined(self, batches: Sequence[Any]) -> Any:
        """Batches put together along their first axis; None where their form does not allow it."""
        flats = [tree.flatten(b, _leaf, _closed) for b in batches]
        columns = list(zip(*([leaf.value for leaf in f.leaves] for f in flats), strict=False))
        if not columns or len({len(f.leaves) for f in flats}) > 1:
            return None
        if not all(all(isinstance(v, Tensor) and v.ndim for v in column) for column in columns):
            return None
        try:
            return flats[0].rebuild([torch.cat(list(column)) for column in columns])
        except RuntimeError:  # other axes differ
            return None

    def size(self, batch: Any) -> int:
        """Length of the first tensor."""
        for leaf in tree.flatten(batch, _leaf, _closed).leaves:
            if isinstance(leaf.value, (Tensor, np.ndarray)) and leaf.value.ndim:
                return len(leaf.value)
        return 1

    # --- state ------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the model, the optimizers and what the functions carry along."""
        carried = list(reachable(self._roots))
        bindings = held_bindings(carried)
        grads = [(p, p.grad) for p in self._tensors]
        try:
            with guard(self._roots), torch_optimizers.held(self._optimizers):
                yield
        finally:
            for restore in bindings:
                restore()
            for p, grad in grads:
                p.grad = grad

    @contextmanager
    def _trial(self) -> Iterator[None]:
        """Hold what a bare step of an optimizer changes."""
        kept = [(p, p.detach().clone(), p.grad) for p in self._tensors]
        now = self.mark()
        try:
            with torch_optimizers.held(self._optimizers):
                yield
        finally:
            with torch.no_grad():
                for p, value, grad in kept:
                    p.data.copy_(value)
                    p.grad = grad
            self._rewind(now)

    def idle(self, is_fresh: bool) -> Iterable[tuple[str, list[str], bool]]:
        """Steps with zero gradients from fresh state; without gradients, and at lr 0, later."""
        if not self._optimizers or any(_needs_closure(o) for o in self._optimizers):
            return
        for what in ["with zero gradients"] if is_fresh else ["without gradients", "with lr 0"]:
            with self._trial():
                names = self._moved(what)
                yield what, names, all(bool(p.isfinite().all()) for p in self._tensors)

    def _moved(self, what: str) -> list[str]:
        for p in self._tensors:
            if p.grad is None and p.requires_grad and what == "with lr 0":
                p.grad = torch.ones_like(p)
            if what == "with zero gradients" and p.requires_grad:
                p.grad = torch.zeros_like(p)
            if what == "without gradients":
                p.grad = None
        for optimizer in self._optimizers:
            for group in torch_optimizers.groups(optimizer):
                if what == "with lr 0" and "lr" in group:
                    group["lr"] = 0.0
                if "weight_decay" in group and what == "with zero gradients":
                    group["weight_decay"] = 0.0
        before = [p.detach().clone() for p in self._tensors]
        for optimizer in self._optimizers:
            type(optimizer).step(optimizer)
        pairs = zip(self.parameters, before, self._tensors, strict=True)
        return [t.name for t, a, b in pairs if not torch.equal(a, b.detach())]

    def flipped(
        self, batch: Any, at: Sequence[np.ndarray], mark: Any
    ) -> list[np.ndarray | None] | None:
        """The gradient in the other mode, train or eval; None where there is no mode to flip."""
        modes = self._modes
        self._modes = [(m, not mode) for m, mode in modes]
        try:
            return self.gradient(batch, at, mark)[1]
        finally:
            self._modes = modes

    def restored(self, update: Update) -> list[tuple[str, float]] | None:
        """Save and load the optimizer's state, repeat the update, compare bit by bit."""
        optimizer = self._optimizers[update.which]
        if _needs_closure(optimizer):
            return None
        with self._trial():
            finals = []
            for is_loaded in (False, True):
                with self._trial():
                    if is_loaded:
                        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                    for p, g in zip(self._tensors, update.received or (), strict=False):
                        p.grad = None if g is None else _like(p, g)
                    type(optimizer).step(optimizer)
                    finals.append([p.detach().clone() for p in self._tensors])
        pairs = zip(self.parameters, update.before, *finals, strict=True)
        return [
            (t.name, float((a - b).double().norm()) / max(float(np.linalg.norm(x)), 1e-300))
            for t, x, a, b in pairs
            if not torch.equal(a, b)
        ]

    def slots(self) -> list[list[np.ndarray]]:
        """None: the gradient itself is seen."""
        return []


class _Watch:
    """Notes the updates of one optimizer while it is open."""

    def __init__(
        self, loop: TorchLoop, optimizer: Any, which: int, updates: list[Update], note: Any
    ) -> None:
        self._loop, self._optimizer, self._which = loop, optimizer, which
        self._updates, self._note = updates, note
        self._before: list[np.ndarray] = []
        self._received: list[np.ndarray | None] = []
        self._hyper: list[dict[str, Any]] = []
        self._has_closure = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hooks of torch's optimizers; a wrapped method for one's own."""
        if isinstance(self._optimizer, torch.optim.Optimizer):
            handles = [
                self._optimizer.register_step_pre_hook(self._pre),
                self._optimizer.register_step_post_hook(self._post),
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
            return
        own = self._optimizer.step
        self._optimizer.step = functools.partial(self._stepping, own)
        try:
            yield
        finally:
            del self._optimizer.step

    def _stepping(self, own: Any, *args: Any, **kwargs: Any) -> Any:
        self._pre(self._optimizer, (self._optimizer, *args), kwargs)
        answer = own(*args, **kwargs)
        self._post(self._optimizer, args, kwargs)
        return answer

    def _pre(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self._before = self._loop._now()
        self._received = self._own(self._loop.received())
        self._hyper = self._loop._hyper(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        self._has_closure = callable(closure)
        if not callable(closure):
            return None
        first = [True]

        def noting() -> Any:
            with torch.enable_grad():
                value = closure()
            if first:
                first.clear()
                self._received = self._own(self._loop.received())
            return value

        return (args[0], noting, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    def _own(self, grads: list[np.ndarray | None]) -> list[np.ndarray | None]:
        groups = torch_optimizers.groups(self._optimizer)
        mine = {id(p) for group in groups for p in group["params"]}
        pairs = zip(grads, self._loop._tensors, strict=True)
        return [g if not mine or id(p) in mine else None for g, p in pairs]

    def _post(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._note("step", math.nan)
        left = self._own(self._loop.received())
        touched = not self._has_closure and any(
            a is not None and b is not None and not np.array_equal(a, b, equal_nan=True)
            for a, b in zip(self._received, left, strict=True)
        )
        self._updates.append(
            Update(
                before=self._before,
                after=self._loop._now(),
                received=self._received,
                hyper=self._hyper,
                which=self._which,
                touched=touched,
            )
        )


def _shadows(pairs: list[tuple[str, Tensor]], held: dict[int, int]) -> dict[int, int]:
    """Master copies: numbers of tensors that only optimizers hold, and of what they stand for."""
    found: dict[int, int] = {}
    for i, (name, p) in enumerate(pairs):
        if not name.startswith("optimizer.") or id(p) not in held:
            continue
        for j, (_, q) in enumerate(pairs):
            is_candidate = j not in found.values() and id(q) not in held and q.shape == p.shape
            is_candidate = is_candidate and p.dtype != q.dtype
            if is_candidate and torch.equal(p.detach().to(q.dtype), q.detach()):
                found[i] = j
                break
    return found


def _needs_closure(optimizer: Any) -> bool:
    """Whether a bare step cannot be made: it evaluates the loss itself, or is no torch one."""
    is_plain = isinstance(optimizer, torch.optim.Optimizer)
    is_plain = is_plain and not isinstance(optimizer, torch.optim.LBFGS)
    return not is_plain or takes(type(optimizer).step, 1) > 1


def _numpy(x: Tensor) -> np.ndarray:
    wide: np.ndarray = x.detach().to(device="cpu", dtype=torch.float64, copy=True).numpy()
    return wide


def _like(p: Tensor, g: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(g, dtype=np.float64)).to(dtype=p.dtype, device=p.device)


def _leaf(path: str, value: Any) -> Leaf:
    return Leaf(path, value)


def _closed(node: Any) -> None:
    return None


def _copied(batch: Any) -> Any:
    flat = tree.flatten(batch, _leaf, _closed)
    copies = [
        leaf.value.clone()
        if isinstance(leaf.value, Tensor)
        else leaf.value.copy()
        if isinstance(leaf.value, np.ndarray)
        else leaf.value
        for leaf in flat.leaves
    ]
    return flat.rebuild(copies)


def _is_same(one: Any, other: Any) -> bool:
    try:
        pairs = zip(
            tree.flatten(one, _leaf, _closed).leaves,
            tree.flatten(other, _leaf, _closed).leaves,
            strict=True,
        )
        return all(_equal(a.value, b.value) for a, b in pairs)
    except ValueError:  # another number of leaves
        return False


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and bool(torch.equal(a, b) or torch.all((a == b) | ((a != a) & (b != b))))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    return True


def loop(training: Training) -> TorchLoop:
    """The loop of a training."""
    return TorchLoop(training)
