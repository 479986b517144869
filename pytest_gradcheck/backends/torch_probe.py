"""A PyTorch model, its loss and a batch: fresh initialisations, passes, steps and origins."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends import (
    torch_flow,
    torch_given,
    torch_input,
    torch_loss,
    torch_origin,
    torch_passes,
    torch_resets,
    torch_samples,
    torch_seeds,
    torch_widths,
    widths,
)
from pytest_gradcheck.backends.layers import Change, Origin, Pass
from pytest_gradcheck.backends.torch_ops import CHANGES
from pytest_gradcheck.backends.torch_state import guard
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

STEP = 0.1  # share of the loss that a first-order step is to take away
LOST = 1e-300  # a step of which rounding leaves nothing; zero is that of a learning rate of zero


class TorchProbe:
    """A torch model as the checks of flow see it.

    Args:
        model: The model; None where ``make`` builds it.
        loss: ``loss(model, batch)``, a tensor of one element.
        batch: What ``loss`` is given.
        make: Builds a freshly initialised model, from torch's global generator or from a seed.
        optimizer: An optimizer of the model's parameters, or what makes one of parameters.
        device: Device to move batch and models to; where they are when empty.

    Raises:
        UsageError: The model has no parameters, or is no module.
    """

    backend = "torch"
    changes = CHANGES
    can_scale = True
    most = 0

    def __init__(
        self,
        model: nn.Module | None,
        loss: torch_loss.Loss,
        batch: Any,
        make: Callable[..., nn.Module] | None = None,
        optimizer: Any = None,
        device: str = "",
    ) -> None:
        device = torch_input.require_device(device)
        self._loss, self._make, self._optimizer, self._device = loss, make, optimizer, device
        self._given, self._original_batch = model, batch
        self._last = -1
        self.count = 0
        with torch.inference_mode(False):
            self._batch = torch_input.moved(batch, device)
        if model is not None:
            torch_input.require_module(model)
        if make is not None:
            with self.guard():
                model = self._made(0)
        self._model = model = torch_input.require_module(model)
        parameters = list(model.parameters())
        self.device = device or str(parameters[0].device)
        self.dtype = str(parameters[0].dtype).removeprefix("torch.")
        self.label = type(getattr(model, "_orig_mod", model)).__name__
        self.replicates = "make" if make is not None else self._resets()

    def guard(self) -> AbstractContextManager[Any]:
        """Hold generators, flags, the model and whatever the loss, make and optimizer carry."""
        roots = (self._given, self._loss, self._make, self._original_batch, self._optimizer)
        return guard(roots)

    def draw(self, seed: int) -> nn.Module:
        """A model of its own: made, or copied and reset; the given one where neither can be."""
        if self._make is not None:
            return self._made(seed)
        if not self.replicates:
            return self._model
        with torch.inference_mode(False):
            fresh = copy.deepcopy(self._model)
            torch_seeds.seed(seed)
            torch_resets.reset(fresh)
            return fresh.to(self._device) if self._device else fresh

    def own(self) -> nn.Module | None:
        """A copy of the given model where its initialisations are drawn."""
        if self._given is None or not self.replicates:
            return None
        with torch.inference_mode(False):
            try:
                fresh: nn.Module = torch_input.copied(self._given)
            except UsageError:  # it has no copies
                return None
            return fresh.to(self._device) if self._device else fresh

    def _made(self, seed: int) -> nn.Module:
        torch_seeds.seed(seed)
        assert self._make is not None
        try:
            with torch.inference_mode(False):
                model = self._make(seed) if _takes_seed(self._make) else self._make()
        except Exception as error:  # whatever the user's code raises, told with its own words
            raise UsageError(f"make raised {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            kind = type(model).__name__
            raise UsageError(f"make must build an nn.Module, it gave a {kind}")
        torch_input.require_module(model)
        return model.to(self._device) if self._device else model

    def _resets(self) -> str:
        """``reset_parameters`` where every module has it and the model looks like a draw of it."""
        holders = [m for m in self._model.modules() if list(m.parameters(recurse=False))]
        if any(hasattr(m, "_orig_mod") for m in self._model.modules()):
            return ""
        if not all(callable(torch_resets.reset_of(m)) for m in holders):
            return ""
        with self.guard():
            try:
                fresh = copy.deepcopy(self._model)
            except (RuntimeError, TypeError):  # holds tensors of a graph, or what has no copies
                return ""
            torch_seeds.seed(0)
            torch_resets.reset(fresh)
            pairs = [*zip(self._model.parameters(), fresh.parameters(), strict=True)]
            pairs += zip(self._model.buffers(), fresh.buffers(), strict=True)
            return "reset_parameters" if all(torch_resets.alike(a, b) for a, b in pairs) else ""

    def same(self, a: nn.Module, b: nn.Module) -> bool:
        """Whether two models have the same parameters, bit for bit."""
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        return all(torch.equal(p, q) for p, q in pairs)

    def measure(self, state: nn.Module, change: Change | None = None, factor: float = 1.0) -> Pass:
        """One pass with the generators set alike; beside a plain one, what a zero answer costs."""
        torch_seeds.seed(0)
        self.count += 1
        seen, gradients = torch_flow.measure(
            state, self._loss, self._batch, change, factor, self._last
        )
        if change is not None or factor != 1.0:
            return seen
        self._last = max((y.index for y in seen.layers if y.kind == "linear"), default=-1)
        torch_seeds.seed(0)
        plain, answer = torch_loss.plain(state, self._loss, self._batch)
        constant = torch_samples.constant(seen.loss, answer, self._batch)
        seen = replace(seen, plain_loss=plain, constant=constant)
        return self._updated(state, seen, gradients) if self._optimizer is not None else seen

    def bare(self, state: nn.Module, factor: float = 1.0) -> Pass:
        """Loss and parameters of one pass, with the loss times a factor, and no layers."""
        self.count += 1
        return torch_passes.bare(state, self._loss, self._batch, factor)

    def repeated(self, state: nn.Module) -> tuple[str, Mapping[str, float]]:
        """Float64, or float32 for a model in float64, and sizes of the gradients in it."""
        other = torch.float32 if self.dtype == "float64" else torch.float64
        found = torch_passes.precise(state, self._loss, self._batch, other)
        return str(other).removeprefix("torch."), found

    def again(self, state: nn.Module, number: int) -> Pass | None:
        """A pass with the generators set to a number; None where it leaves them there."""
        torch_seeds.seed(number)
        before = torch_seeds.states()
        self.count += 1
        made = torch_flow.measure(state, self._loss, self._batch)[0]
        return made if torch_seeds.states() != before or torch.cuda.is_available() else None

    def rescaled(self, state: nn.Module, factors: Mapping[str, float]) -> Pass | None:
        """A pass of a copy with parameters times factors, by name; None where it has no copies."""
        self.count += 1
        return torch_passes.rescaled(state, self._loss, self._batch, factors)

    def forgetful(self, state: nn.Module, name: str) -> Pass | None:
        """A pass in which a module is given its inputs, or a cell its states, without a graph."""
        self.count += 1
        return torch_passes.forgetful(state, self._loss, self._batch, name)

    def shuffled(self, state: nn.Module, number: int) -> Pass | None:
        """A pass with other samples; None where the batch has none, or the loss refuses them."""
        self.count += 1
        return torch_passes.shuffled(state, self._loss, self._batch, number)

    def _updated(self, state: nn.Module, seen: Pass, gradients: dict[str, Tensor | None]) -> Pass:
        """The pass with the relative size of one step of the optimizer, taken on a copy."""
        if callable(self._optimizer):
            model = torch_input.copied(state)
            optimizer = torch_input.optimizer(self._optimizer, model)
        else:
            torch_input.require_owned(self._optimizer, self._model)
            model, optimizer = torch_input.copied(self._model, self._optimizer)
            with torch.no_grad():
                for mine, drawn in zip(model.parameters(), state.parameters(), strict=True):
                    mine.copy_(drawn)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            gradient = gradients.get(name)
            p.grad = None if gradient is None else gradient.detach().clone()
        try:
            optimizer.step()
        except Exception as error:  # no optimizer, or one that asks for a closure
            raise torch_input.refused(error) from error
        after = dict(model.named_parameters())
        moved = {n: _ratio(after[n].detach() - old, old) for n, old in before.items()}
        groups = [group for group in optimizer.param_groups if float(group.get("lr", 1.0))]
        held = {id(p) for group in groups for p in group["params"]}
        moved = {n: max(r, LOST) if id(after[n]) in held else r for n, r in moved.items()}
        parameters = tuple(replace(p, update=moved[p.name]) for p in seen.parameters)
        return replace(seen, parameters=parameters)

    def widened(self, factor: int) -> TorchProbe | None:
        """The same model drawn wider, on its own device."""
        make = widths.asked(self._make, factor)
        if make is None and torch_widths.widened(self._model, factor, 0) is not None:
            make = lambda seed: torch_widths.widened(self.draw(seed), factor, seed)  # noqa: E731
        return None if make is None else TorchProbe(None, self._loss, self._batch, make)

    def stepped(self, state: nn.Module) -> nn.Module:
        """A copy after a step that takes away a tenth of the loss, to first order."""
        torch_seeds.seed(0)
        seen, gradients = torch_flow.measure(state, self._loss, self._batch)
        total = sum(float(g.double().square().sum()) for g in gradients.values() if g is not None)
        fresh = torch_input.copied(state)
        rate = STEP * abs(seen.loss or 0.0) / total if total else 0.0
        with torch.no_grad():
            for name, p in fresh.named_parameters():
                gradient = gradients.get(name)
                if gradient is not None:
                    p.sub_((gradient.double() * rate).to(p.dtype))
        return fresh

    def origin(self, state: nn.Module) -> Origin | None:
        """The first birth of a value that is not finite."""
        torch_seeds.seed(0)
        found = torch_origin.origin(state, self._loss, self._batch)
        reaches = "" if found is None else found.reaches
        return torch_given.blamed(state, self._batch, self._is_finite, reaches) or found

    def _is_finite(self, model: nn.Module, batch: Any) -> bool:
        try:
            return torch_passes.bare(model, self._loss, batch).is_finite
        except UsageError:  # the loss refuses other numbers
            return False

    def strangers(self, state: nn.Module) -> float:
        """Change of the answers for other samples, over their size, when one sample is replaced."""
        answers = []
        for batch in (self._batch, torch_samples.exchanged(self._batch)):
            torch_seeds.seed(0)
            try:
                answers.append(torch_samples.answer(state, self._loss, batch))
            except UsageError:  # the loss refuses two equal samples
                return math.nan
        one, other = answers
        if one is None or other is None or one.shape != other.shape:
            return math.nan
        # A number alone is that of no sample, and a first axis of another length holds none.
        if not one.ndim or not len(one) > 2 or len(one) not in torch_samples.lengths(self._batch):
            return math.nan
        rest = one[1:].double()
        size = float(rest.abs().max())
        return float((other[1:].double() - rest).abs().max()) / size if size else 0.0


def _takes_seed(make: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _ratio(step: Tensor, value: Tensor) -> float:
    size = float(torch.linalg.vector_norm(value.double()))
    return float(torch.linalg.vector_norm(step.double())) / size if size else math.nan
