"""The forms in which layers and gradients are handed over, and what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pytest_gradcheck.backends import layers
from pytest_gradcheck.backends.layers import ACTIVATIONS, Kind, Layer, Pass
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_FORMS = (
    "loss(params, batch) must return recorded layers [(name, activation, gradient), ...], or "
    "(value, layers), or (value, layers, gradients of the parameters)"
)


def word(x: np.ndarray) -> str:
    """``nan`` or ``inf``: what stands in an array that is not finite."""
    return "nan" if np.any(np.isnan(x)) else "inf"


def parts(told: Any) -> tuple[float | None, Any, Any]:
    """Value, record and gradients of the parameters of what a loss returned."""
    if isinstance(told, Mapping) or is_record(told):
        return None, told, None
    if isinstance(told, tuple) and len(told) in (2, 3):
        value, record = told[0], told[1]
        if np.ndim(value) or not np.isreal(value):
            raise UsageError(
                f"{_FORMS}; the value has shape {np.shape(value)}, not that of a number"
            )
        if isinstance(record, Mapping) or is_record(record):
            return float(value), record, told[2] if len(told) == 3 else None
    raise UsageError(f"{_FORMS}; it gave {type(told).__name__}")


def is_record(value: Any) -> bool:
    """Whether a value is a sequence of recorded layers."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, (list, tuple)) and len(item) == 3 and isinstance(item[0], str)
        for item in value
    )


def records(model: Any) -> list[Any]:
    """The records that were handed over, one for each initialisation."""
    if isinstance(model, Mapping) or (is_record(model) and len(model)):
        return [model]
    if isinstance(model, (list, tuple)) and len(model):
        found = [item for item in model if isinstance(item, Mapping) or is_record(item)]
        if len(found) == len(model):
            _same_shapes(found)
            return found
    raise UsageError(
        "without a loss, give a mapping of layer to gradient, or recorded layers [(name, "
        f"activation, gradient), ...], or a list of either; got {type(model).__name__}"
    )


def _same_shapes(records: Sequence[Any]) -> None:
    tables = [
        {name: None if g is None else g.shape for name, _, g in entries_of(one)} for one in records
    ]
    for table in tables[1:]:
        for name, shape in table.items():
            first = tables[0].get(name)
            if name not in tables[0] or (shape != first and None not in (shape, first)):
                raise UsageError(
                    f"the gradient of {name!r} has shape {shape} in one record and {first} in the "
                    f"first; every record must have the same layers"
                )


def entries_of(record: Any) -> Any:
    """Name, output (or value of a parameter) and gradient of each layer."""
    if isinstance(record, Mapping):
        for name, value in record.items():
            pair = value if isinstance(value, tuple) and len(value) == 2 else (None, value)
            yield str(name), _array(pair[0]), _array(pair[1])
        return
    for name, x, g in record:
        yield name, _array(x), _array(g)


def _array(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    if hasattr(value, "detach"):  # a tensor of torch; NumPy lacks bfloat16
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    made = np.asarray(value)
    if made.dtype.kind not in "fiuc" and str(made.dtype) != "bfloat16":
        raise UsageError(
            f"a gradient must be an array of numbers or None, not {type(value).__name__}"
        )
    return made.astype(np.float32) if str(made.dtype) == "bfloat16" else made


def of_record(record: Any) -> Pass:
    """What a record shows."""
    entries = list(entries_of(record))
    if not entries:
        raise UsageError("the record has no layers")
    for name, x, g in entries:
        if x is not None and g is not None and x.shape != g.shape:
            raise UsageError(
                f"the gradient of {name!r} has shape {g.shape}, and the layer has {x.shape}"
            )
    if isinstance(record, Mapping):
        return _of_gradients(entries)
    made = [_layer(name, x, g) for name, x, g in entries]
    if any(layer.kind == "activation" for layer in made):  # the others are what feeds them
        made = [replace(y, kind="linear") if y.kind == "other" else y for y in made]
    names = layers.numbered(layer.name for layer in made)
    return Pass(
        loss=None,
        layers=tuple(replace(layer, name=n) for n, layer in zip(names, made, strict=True)),
    )


def _of_gradients(entries: Sequence[tuple[str, Any, Any]]) -> Pass:
    """A pass of gradients of parameters: vectors (biases) make no profile beside matrices."""
    has_matrices = any(g is not None and g.ndim > 1 for _, _, g in entries)
    made = [
        Layer(
            name=name,
            kind="linear",
            size=1 if g is None else int(g.size),
            width=g.shape[-1] if g is not None and g.ndim else 0,  # a norm tells no width
            activation=math.nan if x is None else layers.rms(x),
            gradient=math.nan if g is None else layers.rms(g),
        )
        for name, x, g in entries
        if g is None or g.ndim > 1 or not has_matrices
    ]
    parameters = tuple(
        layers.Parameter(
            name=name,
            shape=() if g is None else g.shape,
            value=math.nan if x is None else layers.rms(x),
            gradient=math.nan if g is None else layers.rms(g),
            symmetric=x is not None and layers.symmetric(x, g),
        )
        for name, x, g in entries
    )
    return Pass(loss=None, layers=tuple(made), parameters=parameters)


def _layer(name: str, x: np.ndarray | None, g: np.ndarray | None) -> Layer:
    op = name.partition("#")[0].rpartition(".")[2]
    kind: Kind = "activation" if op in ACTIVATIONS or op == "softmax" else "other"
    if x is None:
        size = layers.rms(g) if g is not None else math.nan
        return Layer(name=name, kind=kind, op=op, size=0 if g is None else g.size, gradient=size)
    made = layers.of_arrays(name, kind, op, x, g)
    return replace(made, index=0)


def agree(
    values: Mapping[str, np.ndarray | None], gradients: Mapping[str, np.ndarray | None]
) -> None:
    """Refuse gradients of parameters that do not exist, or have another shape."""
    for name, g in gradients.items():
        value = values.get(name)
        if value is None:
            raise UsageError(f"a gradient is given for {name!r}, and there is no such parameter")
        if g is not None and g.shape != value.shape:
            raise UsageError(
                f"the gradient of {name!r} has shape {g.shape}, and the parameter {value.shape}"
            )
