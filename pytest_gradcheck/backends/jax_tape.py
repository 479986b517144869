"""A small traced function and its adjoints, run equation by equation without a compiler.

Compiling a network of a dozen layers takes a hundred times longer than running it. Forward, each
equation is computed by NumPy; backward, the rule of each is what ``jax.vjp`` makes of that equation
alone, traced once for all equations alike. The adjoint of every value comes with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pytest_gradcheck.backends.jax_contracts import equations
from pytest_gradcheck.backends.jax_eval import bound
from pytest_gradcheck.backends.jax_primitives import numpy_of

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_CALLS = frozenset(
    {"pjit", "jit", "closed_call", "core_call", "remat2", "checkpoint", "remat"}
    | {"custom_jvp_call"}
)
_COMPILED = frozenset(
    {"scan", "while", "cond", "shard_map", "xla_pmap", "pallas_call", "conv_general_dilated"}
    | {"custom_vjp_call", "custom_vjp_call_jaxpr"}  # whose forward rule may compute something else
)
_DTYPES = frozenset({"float32", "float64", "int32", "int64", "uint32", "uint64", "bool"})
# Elements and, by the hundred, multiplications of an equation on average: what NumPy computes some
# ten times while an equation is compiled (measured on perceptrons and transformers).
WORK = 100_000
_HOUSE = str(Path(jax.__file__).parent)
_RULES = 1024  # rules that are kept
_rules: dict[Any, Program] = {}


@dataclass(frozen=True, slots=True)
class Call:
    """One equation: what computes it, and where its inputs and outputs lie."""

    eqn: Any
    compute: Callable[..., Any]
    is_many: bool
    given: tuple[int, ...]
    made: tuple[int, ...]


class Program:
    """A jaxpr as a list of calls.

    Args:
        jaxpr: An open jaxpr.
        consts: Its constants.
    """

    def __init__(self, jaxpr: Any, consts: Sequence[Any]) -> None:
        self._slots: dict[int, int] = {}
        self._blank: list[Any] = []
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            self._blank[self._slot(var)] = np.asarray(value)
        self.inputs = [self._slot(var) for var in jaxpr.invars]
        eqns = _needed(jaxpr)
        self.calls = [self._call(eqn) for eqn in eqns]
        self.outputs = [self._slot(var) for var in jaxpr.outvars]

    def run(self, args: Sequence[Any]) -> list[Any]:
        """All values, by slot."""
        env = self._blank.copy()
        for slot, value in zip(self.inputs, args, strict=True):
            env[slot] = value
        for call in self.calls:
            out = call.compute(*[env[n] for n in call.given])
            if call.is_many:
                for slot, value in zip(call.made, out, strict=True):
                    env[slot] = value
            else:
                env[call.made[0]] = out
        return env

    def __call__(self, *args: Any) -> list[Any]:
        """The outputs."""
        env = self.run(args)
        return [env[n] for n in self.outputs]

    def _slot(self, var: Any) -> int:
        if hasattr(var, "val"):
            self._blank.append(np.asarray(var.val, var.aval.dtype))
            return len(self._blank) - 1
        if id(var) not in self._slots:
            self._slots[id(var)] = len(self._blank)
            self._blank.append(None)
        return self._slots[id(var)]

    def _call(self, eqn: Any) -> Call:
        given = tuple(map(self._slot, eqn.invars))
        made = tuple(map(self._slot, eqn.outvars))
        compute = numpy_of(eqn)
        if compute is not None:
            return Call(eqn, compute, False, given, made)
        inner = _inner(eqn)
        if inner is not None:
            return Call(eqn, Program(*inner), True, given, made)
        return Call(eqn, lambda *values: _by_jax(eqn, values), True, given, made)


def _needed(jaxpr: Any) -> list[Any]:
    """The equations on which the outputs depend."""
    wanted = {id(v) for v in jaxpr.outvars}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in wanted for v in eqn.outvars):
            kept.append(eqn)
            wanted |= {id(v) for v in eqn.invars}
    return kept[::-1]


def _inner(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr of a call, and its constants; None for other equations."""
    if eqn.primitive.name not in _CALLS:
        return None
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if inner is None:
        return None
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def _by_jax(eqn: Any, given: Sequence[Any]) -> list[Any]:
    return [np.asarray(x) for x in bound(eqn, list(given))]


class Tape:
    """A function with its adjoints.

    Args:
        closed: Its jaxpr. The first output is what is differentiated; adjoints of the others, which
            are values on the way, come with it.
        count: Inputs with respect to which it is differentiated; those after them are held.
        still: Numbers of the outputs that have no adjoint.
    """

    def __init__(self, closed: Any, count: int, still: Collection[int] = ()) -> None:
        self._count = count
        self._program = Program(closed.jaxpr, closed.consts)
        self._shapes = [(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
        self._pulls: dict[int, Program] = {}
        program = self._program
        asked = (slot for n, slot in enumerate(program.outputs) if n not in still)
        active = {*program.inputs[:count], *asked}
        self._floats: list[tuple[bool, ...]] = []
        self._masks: list[tuple[bool, ...]] = []
        for call in program.calls:
            pairs = zip(call.given, call.eqn.invars, strict=True)
            stops = call.eqn.primitive.name == "stop_gradient"
            mask = tuple(n in active and _is_float(v) and not stops for n, v in pairs)
            self._masks.append(mask)
            self._floats.append(tuple(map(_is_float, call.eqn.outvars)))
            if any(mask):
                active |= set(call.made)

    def value(self, values: Sequence[Any]) -> float:
        """The first output."""
        with np.errstate(all="ignore"):
            return float(self._program(*values)[0])

    def run(self, values: Sequence[Any], factor: float) -> tuple[list[Any], list[Any], list[Any]]:
        """Outputs, adjoints of all but the first, and gradients of the inputs.

        Args:
            values: The inputs.
            factor: What the first output is multiplied by before it is differentiated.
        """
        with np.errstate(all="ignore"):
            env = self._program.run(values)
            outs = [env[n] for n in self._program.outputs]
            adjoints = self._reversed(env, np.asarray(outs[0]).dtype.type(factor))
        pulled = [
            adjoints.get(n, np.zeros_like(y))
            for n, y in zip(self._program.outputs[1:], outs[1:], strict=True)
        ]
        gradients = [
            adjoints.get(n, np.zeros(*shape))
            for n, shape in zip(self._program.inputs, self._shapes[: self._count], strict=False)
        ]
        return outs, pulled, gradients

    def _reversed(self, env: list[Any], factor: Any) -> dict[int, Any]:
        adjoints: dict[int, Any] = {self._program.outputs[0]: factor}
        for number in range(len(self._program.calls) - 1, -1, -1):
            call, mask = self._program.calls[number], self._masks[number]
            if not any(mask) or not any(n in adjoints for n in call.made):
                continue
            cotangents = [
                adjoints[n] if n in adjoints else np.zeros_like(env[n])
                for n, is_float in zip(call.made, self._floats[number], strict=True)
                if is_float
            ]
            pulled = self._pull(number)(*[env[n] for n in call.given], *cotangents)
            spots = (n for n, wanted in zip(call.given, mask, strict=True) if wanted)
            for spot, g in zip(spots, pulled, strict=True):
                adjoints[spot] = adjoints[spot] + g if spot in adjoints else g
        return adjoints

    def _pull(self, number: int) -> Program:
        if number not in self._pulls:
            self._pulls[number] = _rule(self._program.calls[number].eqn, self._masks[number])
        return self._pulls[number]


def _rule(eqn: Any, mask: tuple[bool, ...]) -> Program:
    """From inputs and cotangents of an equation to cotangents of those inputs that the mask has."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    outs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.outvars if _is_float(v)]
    key = _key(eqn, mask)
    if key is not None and key in _rules:
        return _rules[key]

    def pulled(*values: Any) -> Any:
        given, cotangents = values[: len(shapes)], values[len(shapes) :]
        moving = [x for x, wanted in zip(given, mask, strict=True) if wanted]

        def forward(*active: Any) -> list[Any]:
            filled = iter(active)
            pairs = zip(given, mask, strict=True)
            made = bound(eqn, [next(filled) if wanted else x for x, wanted in pairs])
            return [x for x in made if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]

        return jax.vjp(forward, *moving)[1](list(cotangents))

    closed = jax.make_jaxpr(pulled)(*shapes, *outs)
    rule = Program(closed.jaxpr, closed.consts)
    if key is not None:
        if len(_rules) >= _RULES:
            _rules.clear()
        _rules[key] = rule
    return rule


def _key(eqn: Any, mask: tuple[bool, ...]) -> Any:
    """What equations with the same rule share; None where that cannot be told."""
    shapes = tuple((v.aval.shape, str(v.aval.dtype)) for v in eqn.invars)
    if eqn.primitive.name in _CALLS:  # whose own jaxprs are never the same again
        own = _own(eqn)
        return None if own is None else (*own, shapes, mask)
    key = (eqn.primitive, tuple(sorted(eqn.params.items(), key=lambda p: p[0])), shapes, mask)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _own(eqn: Any) -> tuple[str, ...] | None:
    """Which of JAX's own functions with a rule by hand (relu, say) is called; None for others."""
    inner, rule = (eqn.params.get(name) for name in ("call_jaxpr", "jvp_jaxpr_fun"))
    if inner is None or rule is None:
        return None
    places = (getattr(getattr(f, "debug_info", None), "func_src_info", "") for f in (inner, rule))
    told = tuple(map(str, places))
    return (*told, str(inner)) if all(f" at {_HOUSE}" in place for place in told) else None


def _is_float(var: Any) -> bool:
    return bool(np.dtype(var.aval.dtype).kind == "f")


def is_small(closed: Any) -> bool:
    """Whether a jaxpr is run here: without loops and effects, in plain precisions, and small."""
    eqns = list(equations(closed.jaxpr))
    if closed.effects or any(eqn.primitive.name in _COMPILED for eqn in eqns):
        return False
    variables = [v for eqn in eqns for v in (*eqn.invars, *eqn.outvars)]
    if not all(str(getattr(v.aval, "dtype", "")) in _DTYPES for v in variables):
        return False
    return sum(map(_work, eqns)) <= WORK * len(eqns)


def _work(eqn: Any) -> float:
    size = sum(math.prod(v.aval.shape) for v in eqn.outvars)
    if eqn.primitive.name != "dot_general":
        return float(size)
    (left, _), _ = eqn.params["dimension_numbers"]
    return float(size * (1 + math.prod(eqn.invars[0].aval.shape[n] for n in left) / 100))
