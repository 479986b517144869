"""What a user hands over: a training or what builds one, functions and what they return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pytest_gradcheck.backends import tree
from pytest_gradcheck.backends.protocol import Flat, Leaf
from pytest_gradcheck.backends.raised import kind_of
from pytest_gradcheck.backends.steps import Training
from pytest_gradcheck.errors import UsageError, listed

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def built(training: Any) -> Training:
    """The training itself, or what a factory builds.

    Raises:
        UsageError: Neither came out.
    """
    is_factory = callable(training) and not isinstance(training, Training)
    if is_factory and takes(getattr(training, "forward", training), 0):
        name = getattr(training, "__name__", type(training).__name__)
        raise UsageError(
            f"a Training is wanted, or a function without arguments that returns one; {name} takes "
            f"arguments: return Training(step=..., loss=..., batches=...) from a function"
        )
    made = training() if is_factory else training
    if not isinstance(made, Training):
        raise UsageError(
            f"a Training is wanted, or a function that returns one; got {type(made).__name__}"
        )
    losses = made.loss if isinstance(made.loss, (list, tuple)) and made.loss else [made.loss]
    for part, value in (("step", made.step), *(("loss", loss) for loss in losses)):
        if not callable(value):
            raise UsageError(f"Training.{part} must be callable, got {value!r}")
    return made


def returned(got: Sequence[Any], params: Any, flatten: Callable[[Any], Flat]) -> str:
    """What is wrong with the first two values that a functional step returns; empty where nothing.

    Args:
        got: What it returns.
        params: The parameters that it was given.
        flatten: Takes a nested value apart.
    """

    def form(value: Any) -> list[tuple[str, tuple[int, ...]]]:
        return [(leaf.path, np.shape(leaf.value)) for leaf in flatten(value).leaves if leaf.dtype]

    wanted = form(params)
    if form(got[0]) == wanted:
        return ""
    if form(got[1]) == wanted:
        told = "the step returns its parameters second, as in (opt_state, params)"
        return f"ValueError: {told}; return (params, opt_state, ...)"
    if form(got) == wanted:
        return "TypeError: the step returns parameters alone; return (params, opt_state, ...)"
    is_fit = [shape for _, shape in form(got[0])] == [shape for _, shape in wanted]
    return "" if is_fit else "ValueError: the step returns parameters of other shapes"


def in_order(value: Any, like: Any) -> Any:
    """A nested value whose dictionaries have their keys in the order of those of another.

    Args:
        value: What a step returns or keeps: parameters, or a state with parts like them.
        like: The parameters.
    """
    if type(value) in (list, tuple):
        is_like = type(like) is type(value) and len(like) == len(value)
        inner = like if is_like else [like] * len(value)
        return type(value)(in_order(x, y) for x, y in zip(value, inner, strict=True))
    if type(value) is not dict:
        return value
    if isinstance(like, dict) and value.keys() == like.keys():
        return {key: in_order(value[key], inner) for key, inner in like.items()}
    return {key: in_order(inner, like) for key, inner in value.items()}


def numbered(value: Any, number: Callable[[float], Any]) -> Any:
    """Parameters whose plain floats are arrays, as a step makes them of those by what it adds.

    Those in dataclasses and modules stay: there, they are settings as a rule.

    Args:
        value: The parameters, or a part of them.
        number: Makes an array of a float.
    """
    if type(value) is float:
        return number(value)
    if type(value) is dict:
        return {key: numbered(inner, number) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(numbered(inner, number) for inner in value))
    if type(value) in (list, tuple):
        return type(value)(numbered(inner, number) for inner in value)
    return value


def like(value: np.ndarray, old: Any) -> Any:
    """A copy of an array, as a number where the old one is one."""
    return np.float64(value) if isinstance(old, np.generic) else np.array(value)


def fitted(
    grads: Sequence[np.ndarray], point: Sequence[np.ndarray], names: Sequence[str]
) -> list[np.ndarray]:
    """A gradient that the user computes, each part in the shape of its parameter.

    Raises:
        UsageError: There are more or fewer parts, or one has another shape.
    """
    if len(grads) != len(point):
        raise UsageError(
            f"Training.grad must give an array for each of {len(point)} parameters "
            f"({listed(names)}), it gave {len(grads)}"
        )
    for name, g, x in zip(names, grads, point, strict=True):
        if np.squeeze(g).shape != np.squeeze(x).shape:
            raise UsageError(
                f"Training.grad must give arrays of the shapes of the parameters; {name} has the "
                f"shape {x.shape}, its gradient {g.shape}"
            )
    return [g.reshape(x.shape) for g, x in zip(grads, point, strict=True)]


def takes(function: Callable[..., Any], default: int) -> int:
    """How many positional arguments a function must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return default
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


@contextmanager
def telling(part: str, given: Sequence[Any] = ()) -> Iterator[None]:
    """What a function of the user raises is told in its own words.

    Args:
        part: What the function is.
        given: What it is called with, told where it may not fit.

    Raises:
        UsageError: It raises.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # whatever the user's code raises
        what = f"{type(error).__name__}: {error}"
        if what.startswith("ConcretizationTypeError"):
            first = what.partition("\n")[0]
            what = f"{first}; return what JAX computes, without float() or item()"
        if given and isinstance(error, (AttributeError, TypeError)):
            what += f"; it is called with {listed([kind_of(value) for value in given])}"
        raise UsageError(f"{part} raised {what}") from error


def scalar(value: Any) -> Any:
    """The loss in what a loss function returns: the first of a tuple."""
    return value[0] if isinstance(value, (tuple, list)) and value else value


def no_arrays(params: Any) -> str:
    """Why parameters are none that can be trained, and what to give."""
    told = "Training.params holds no array of floating-point type"
    leaves = tree.flatten(params, Leaf, lambda node: None).leaves
    kinds = {type(leaf.value) for leaf in leaves}
    if any(kind.__module__.partition(".")[0] == "torch" for kind in kinds):
        return (
            f"{told}, but tensors of torch: what torch trains is given as model= (a module; loose "
            f"tensors in a torch.nn.ParameterList) with optimizer=, and step(batch) returns nothing"
        )
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    return f"{told} (it holds: {names or 'nothing'}); give a dict or a list of its arrays"
