"""A call of the verb, as it was made, and the probe that answers it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gradcheck import backends
from pytest_gradcheck.backends import drawn, tree
from pytest_gradcheck.backends.flow import probe_of
from pytest_gradcheck.backends.probes import Probe
from pytest_gradcheck.backends.protocol import Leaf
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowQuestion:
    """A call of the verb: the model, its loss, a batch, and how to draw it anew."""

    model: Any
    loss: Callable[[Any, Any], Any] | None
    batch: Any
    make: Callable[..., Any] | None = None
    seeds: int = 5
    optimizer: Any = None
    frozen: Sequence[str] = ()
    backend: str | None = None
    device: str | None = None
    label: str | None = None


def probe(question: FlowQuestion) -> Probe:
    """The probe of the backend that the model belongs to.

    Raises:
        UsageError: The model is of no known kind, or cannot be probed.
    """
    _require_model(question)
    if question.loss is not None and not callable(question.loss):
        kind = type(question.loss).__name__
        raise UsageError(f"loss must be a function loss(model, batch), not a {kind}")
    if question.make is not None and not _builds(question.make):
        kind = type(question.make).__name__
        raise UsageError(f"make must be a function that builds a fresh model, not a {kind}")
    if question.loss is not None:
        _require_samples(question.batch)
    _require_loss(question)
    name = question.backend or _owner(question)
    maker = probe_of(name)
    owner = backends.owner(question.model)
    if owner not in (None, "numpy", name):  # arrays of NumPy are anybody's
        kind = type(question.model).__name__
        raise UsageError(
            f"backend={name!r} was asked for, and a {kind} belongs to {owner!r}: leave backend= out"
        )
    made: Probe = maker(
        question.model,
        question.loss,
        question.batch,
        make=question.make,
        optimizer=question.optimizer,
        device=question.device or "",
    )
    return made


def _require_model(question: FlowQuestion) -> None:
    """Refuse a class in the place of a model, and no model at all.

    Raises:
        UsageError: Says what to give.
    """
    model = question.model
    if isinstance(model, type):
        name = model.__name__
        raise UsageError(
            f"the model is the class {name}: give an instance, {name}(...), or what builds one as "
            f"make=lambda: {name}(...)"
        )
    if model is None and question.make is None:
        raise UsageError("the model is None: give a model, or a function that builds one as make=")


def _require_loss(question: FlowQuestion) -> None:
    """Refuse a model without a loss; gradients that are already there need none.

    Raises:
        UsageError: There is none.
    """
    has_more = question.make is not None or question.batch is not None
    if question.loss is None and (has_more or callable(question.model)):
        raise UsageError(
            "loss is missing: give a function loss(model, batch), as in "
            "check_flow(model, loss, batch); only gradients that are already there need none"
        )


def _builds(make: Any) -> bool:
    """Whether it is a function or a class, and no model that can be called too."""
    return callable(make) and (hasattr(make, "__name__") or backends.owner(make) is None)


def _require_samples(batch: Any) -> None:
    """Refuse a batch of arrays that are all empty.

    Raises:
        UsageError: There is no sample in it.
    """
    leaves = tree.flatten(batch, Leaf, lambda node: None).leaves
    shapes = [tuple(getattr(y.value, "shape", ()) or ()) for y in leaves]
    known = [shape for shape in shapes if shape]
    if known and all(0 in shape for shape in known):
        told = ", ".join(map(str, known[:3]))
        raise UsageError(f"the batch has no samples: {told}; give 16 or more")


def _owner(question: FlowQuestion) -> str:
    """The backend of the model, or of the first value inside it; NumPy for records."""
    if question.loss is None and question.make is None:
        return "numpy"
    model = question.model
    if model is None and question.make is not None:
        return _owner_of_made(question)
    return _found(model) or _found(question.batch) or "numpy"


def _owner_of_made(question: FlowQuestion) -> str:
    found = _found(question.batch)
    if found not in (None, "numpy"):
        return str(found)
    make = question.make
    if make is not None and _takes_seed(make):  # a batch of NumPy's is anybody's
        with backends.load("numpy").guard(make):
            return _found(drawn.made(make, 0)) or "numpy"
    if found is None:
        raise UsageError(
            "name the backend with backend=: neither model nor batch tells which it is"
        )
    return found


def _takes_seed(make: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)


def _found(value: Any) -> str | None:
    own = backends.owner(value)
    if own is not None:
        return own
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        names = [name for item in value if (name := _found(item)) is not None]
        others = [name for name in names if name != "numpy"]
        return next(iter(others or names), None)
    inner = getattr(value, "__dict__", None)
    return _found(list(inner.values())[:20]) if isinstance(inner, dict) and inner else None
