"""PyTorch's state: generators, flags, and the tensors that modules hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradcheck.backends.held import Bindings
from pytest_gradcheck.backends.numpy import held_arrays, reset
from pytest_gradcheck.backends.reach import holders
from pytest_gradcheck.backends.state import (
    Generator,
    StateGuard,
    global_generators,
    private_generators,
)
from pytest_gradcheck.backends.torch_flags import Flags


def guard(roots: Sequence[Any]) -> StateGuard:
    """Holds generators, flags, and the modules and tensors that functions carry along."""
    carried = holders(roots)
    modules = [value for value in carried if isinstance(value, nn.Module)]
    generators: list[Generator] = [*global_generators(), Flags(), *_generators()]
    generators += private_generators(carried)
    generators += _private(carried)
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    own = {id(tensor): tensor for part in parts for tensor in _tensors_of(part)}
    loose = {id(v): v for v in carried if isinstance(v, Tensor) and _holdable(v)}
    # Last to first: each module gets its own tensors back before their values.
    standing = Bindings((), [*places(parts), *_hooks(parts)]).held()
    hooks = map(_hooked, (own | loose).values())
    restorers = [*held_arrays(carried), *_held(own | loose), *hooks, *standing]
    return StateGuard(generators, restorers)


@contextmanager
def swapped(parts: Sequence[nn.Module], tensors: dict[int, Any]) -> Iterator[None]:
    """Other tensors in the place of those of a module's parts, wherever they stand.

    Not ``torch.func.functional_call``: it does not put back the tensors of a module that stands in
    two places (torch 2.13).
    """
    holders = [part for part in parts if part._parameters or part._buffers]
    kept = [(part, dict(part._parameters), dict(part._buffers)) for part in holders]
    try:
        for part in holders:
            for held in (part._parameters, part._buffers):
                held.update({n: tensors.get(id(t), t) for n, t in held.items()})
        yield
    finally:
        for part, parameters, buffers in kept:
            reset(part._parameters, parameters)
            reset(part._buffers, buffers)


def generators_of(carried: Sequence[Any]) -> list[Generator]:
    """Every generator: Python's, NumPy's, torch's own and those that functions carry along."""
    found: list[Generator] = [*global_generators(), *_generators(), *private_generators(carried)]
    return found + _private(carried)


class _CpuGenerator:
    """The default generator of the CPU."""

    draws = True

    def get(self) -> Any:
        return torch.get_rng_state()

    def has_moved(self, state: Any) -> bool:
        return not torch.equal(state, self.get())

    def set(self, state: Any) -> None:
        torch.set_rng_state(state)


class _Private(_CpuGenerator):
    """A generator that the function carries along."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def get(self) -> Any:
        return self._generator.get_state()

    def set(self, state: Any) -> None:
        self._generator.set_state(state)


class _CudaGenerator(_CpuGenerator):
    """The default generator of one CUDA device."""

    def __init__(self, index: int) -> None:
        self._index = index

    def get(self) -> Any:
        return torch.cuda.get_rng_state(self._index)

    def set(self, state: Any) -> None:
        torch.cuda.set_rng_state(state, self._index)


def _private(carried: Iterable[Any]) -> list[Generator]:
    # By the type: torch answers isinstance with Python code.
    return [_Private(value) for value in carried if issubclass(type(value), torch.Generator)]


def _generators() -> list[_CpuGenerator]:
    # An uninitialised CUDA context has no state to lose, and asking would create it.
    count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    return [_CpuGenerator(), *(_CudaGenerator(index) for index in range(count))]


def places(parts: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """The dictionaries of which tensor, part, mode or attribute stands where."""
    return [
        held
        for part in parts
        for held in (part._parameters, part._buffers, part._modules, part.__dict__)
        if isinstance(held, dict)  # those of a scripted module are not
    ]


def _hooks(parts: Iterable[nn.Module]) -> list[dict[Any, Any]]:
    """The dictionaries of hooks on modules, and of how each is called."""
    found = (held for part in parts for name, held in vars(part).items() if "_hooks" in name)
    return [held for held in found if isinstance(held, dict)]


def _hooked(tensor: Tensor) -> Callable[[], None]:
    """What takes off the hooks that were put on a leaf since, and puts back those that it had."""
    names = ("_backward_hooks", "_post_accumulate_grad_hooks") if tensor.is_leaf else ()
    kept = [(name, held, dict(held or ())) for name in names for held in [getattr(tensor, name)]]

    def restore() -> None:
        for name, held, content in kept:
            if getattr(tensor, name) is not held:
                setattr(tensor, name, held)
            if held is not None and held != content:
                held.clear()
                held.update(content)

    return restore


def _tensors_of(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(recurse=False), *part.buffers(recurse=False)]


def _held(tensors: Mapping[int, Tensor]) -> Sequence[Callable[[], None]]:
    """Restorers of values, each tensor copied once however often it was found."""
    return [functools.partial(_restore, tensor, *_kept(tensor)) for tensor in tensors.values()]


def _holdable(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not torch.nn.parameter.is_lazy(tensor)


def _kept(tensor: Tensor) -> tuple[Tensor, bool, Tensor | None, Tensor | None]:
    grad = tensor.grad if tensor.is_leaf else None
    kept = None if grad is None else grad.detach().clone()
    return tensor.detach().clone(), tensor.requires_grad, grad, kept


def _restore(
    tensor: Tensor, value: Tensor, requires_grad: bool, grad: Tensor | None, kept: Tensor | None
) -> None:
    if not _identical(tensor, value):
        tensor.detach().copy_(value)
    if grad is not None and kept is not None and not _identical(grad, kept):
        grad.detach().copy_(kept)
    if tensor.is_leaf:
        tensor.grad = grad
        tensor.requires_grad_(requires_grad)


def _identical(a: Tensor, b: Tensor) -> bool:
    # Not torch.equal: NaN is identical to itself, and 0.0 is not -0.0.
    same = a.shape == b.shape and a.dtype == b.dtype
    return bool(same and torch.equal(_bits(a), _bits(b)))


def _bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    return plain.view(_INTEGERS[plain.element_size()])


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
