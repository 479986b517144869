"""The values inside a traced JAX function that are looked at, and the names of its operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from pytest_gradcheck.backends.layers import ACTIVATIONS, Kind

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot"})
INLINE = frozenset({"pjit", "jit", "closed_call", "core_call", "remat2", "checkpoint", "remat"})
SHAPED = frozenset(
    {"transpose", "reshape", "convert_element_type", "broadcast_in_dim", "squeeze", "slice"}
    | {"dynamic_slice", "copy", "copy_p", "rev", "stop_gradient", "sharding_constraint"}
)
GELU = "mul by sqrt(2 / pi)"  # what the approximate GELU gives to its tanh
_HOUSES = (str(Path(jax.__file__).parent), str(Path(__file__).parents[1]))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Around:
    """What an equation lies in.

    Args:
        stacks: For each loop around it, whether that is a ``scan`` over stacked layers.
        loop: Key of the innermost loop.
        is_reverse: Whether the outermost loop is a ``scan`` that begins at the last entry.
        branch: Prefix of the innermost ``cond`` or ``while``, which may not run it every time.
        is_held: Whether it lies in a ``while`` or in a rule by hand, where nothing has an adjoint.
        is_still: Whether no gradient comes through its values to a parameter.
        is_layer: Whether its values may be shown: not in a rule by hand, but in a loop inside it.
    """

    stacks: tuple[bool, ...] = ()
    loop: str = ""
    is_reverse: bool = False
    branch: str = ""
    is_held: bool = False
    is_still: bool = False
    is_layer: bool = True

    @property
    def has_adjoint(self) -> bool:
        """Whether an adjoint is asked for."""
        return not self.is_held and not self.is_still


@dataclass(frozen=True, slots=True)
class Site:
    """One value that is looked at.

    Args:
        key: Place of its equation in the jaxpr: numbers of nested equations, joined by slashes.
        name: Name of the layer.
        kind: Product with weights, activation, or anything else.
        op: Operation.
        index: Number among those of its kind.
        place: ``file:line`` in the user's code.
        around: What it lies in.
        owner: Key of the product, where a bias is added to it.
        operand: Position of what the product's weights are multiplied with.
    """

    key: str
    name: str
    kind: Kind
    op: str
    index: int = -1
    place: str = ""
    around: Around = Around()  # frozen
    owner: str = ""
    operand: int = 0


def ordered(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites in the order of the data, those after the last product without a number.

    What follows the last product with weights belongs to the loss.
    """
    keys = sorted(sites, key=number)
    last = max((n for n, key in enumerate(keys) if sites[key].kind == "linear"), default=len(keys))
    made = {
        key: sites[key] if n <= last else replace(sites[key], index=-1)
        for n, key in enumerate(keys)
    }
    # Only the softmax after the last product is of interest: the others are parts of attention.
    ends = {key for n, key in enumerate(keys) if n > last}
    return {
        key: replace(site, kind="activation") if site.op == "softmax" else site
        for key, site in made.items()
        if site.op != "softmax" or key in ends
    }


def ends(sites: Mapping[str, Site]) -> list[Site]:
    """The last product with weights; of a choice, that of each branch."""
    products = [s for s in sites.values() if s.kind == "linear"]
    last = max(products, key=lambda s: s.index, default=None)
    if last is None or not last.around.branch:
        return [] if last is None else [last]
    choice = last.around.branch.rstrip("/").rpartition("/")[0]
    found: dict[str, Site] = {}
    for site in sorted(products, key=lambda s: s.index):
        if site.key.startswith(f"{choice}/"):
            found[site.key.removeprefix(f"{choice}/").partition("/")[0]] = site
    return list(found.values())


def number(key: str) -> tuple[int, ...]:
    """A key as numbers, by which equations run one after another; before all for a parameter."""
    return tuple(int(part) for part in key.split("/")) if key[:1].isdigit() else (-1,)


def inlined(eqn: Any) -> Any:
    """The jaxpr inside a call that is walked through; None for an equation to be run as it is."""
    if eqn.primitive.name not in INLINE or operation(eqn) in ACTIVATIONS:
        return None
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    # Constants of a closed jaxpr are rare here, and only closed ones without any are opened.
    if hasattr(inner, "consts"):
        return inner.jaxpr if not inner.consts else None
    return inner


def branches(eqn: Any) -> Sequence[Any] | None:
    """The closed jaxprs of a ``cond`` that is looked into; None for other equations."""
    if eqn.primitive.name != "cond" or eqn.params.get("branches_platforms") is not None:
        return None  # those of other platforms do not run here
    found: Sequence[Any] | None = eqn.params.get("branches")
    return found


def is_loop(eqn: Any) -> bool:
    """Whether an equation is a ``while`` that is looked into."""
    return bool(eqn.primitive.name == "while" and "body_nconsts" in eqn.params)


def turn(eqn: Any, given: Sequence[T]) -> tuple[Any, list[T], list[T]]:
    """The closed jaxpr of a turn of a ``while``, what all turns are given, and the first one."""
    start, fixed = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    end = start + fixed
    return eqn.params["body_jaxpr"], list(given[start:end]), list(given[end:])


def ruled(eqn: Any) -> Any:
    """The closed jaxpr of a function whose derivative somebody wrote; None for other equations."""
    if not eqn.primitive.name.startswith("custom_vjp"):
        return None
    inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
    return inner if hasattr(inner, "consts") and hasattr(inner, "jaxpr") else None


def operation(eqn: Any) -> str:
    """Name of an operation: that of the function, where JAX's own one was called."""
    name = str(eqn.primitive.name)
    if name in ("pjit", "jit", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"):
        return _function(eqn) or name
    if name == "max" and any(_is(v, 0.0) for v in eqn.invars):
        return "relu"
    if name == "mul" and any(_is(v, (2 / math.pi) ** 0.5) for v in eqn.invars):
        return GELU
    return name


def _function(eqn: Any) -> str:
    name = eqn.params.get("name")
    if name:
        return str(name)
    inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
    eqns: list[Any] = list(getattr(getattr(inner, "jaxpr", inner), "eqns", ()))
    return str(eqns[0].params.get("name") or eqns[0].primitive.name) if len(eqns) == 1 else ""


def _is(var: Any, number: float) -> bool:
    """Whether a variable is a literal of that value, in any precision."""
    if not hasattr(var, "val") or jnp.ndim(var.val) != 0 or jnp.iscomplexobj(var.val):
        return False
    return abs(float(var.val) - number) <= 4e-3 * number


def place_of(eqn: Any) -> str:
    """``file:line`` in the user's code; empty where that is not known."""
    for file, line in _frames(eqn.source_info.traceback):
        if not file.startswith((*_HOUSES, "<")):
            return f"{Path(file).name}:{line}"
    return ""


def _frames(trace: Any) -> Iterator[tuple[str, int]]:
    for frame in trace.frames if trace is not None else ():
        yield frame.file_name, frame.line_num


def is_of_user(eqn: Any, name: str) -> bool:
    """Whether an equation comes from a function of JAX's that the user called, not JAX itself."""
    trace = eqn.source_info.traceback
    frames = list(trace.frames) if trace is not None else []
    last = max((k for k, frame in enumerate(frames) if frame.function_name == name), default=-1)
    callers = frames[last + 1 :]
    return not callers or not callers[0].file_name.startswith(_HOUSES)
