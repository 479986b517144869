"""The derivative under test: the framework's own, or a hand-written one in any of its four forms.

Each form answers the same question: the gradient of the inner product of given cotangents with the
function, one array for each input under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pytest_gradcheck.backends import (
    Array,
    Backend,
    Flat,
    Function,
    Leaf,
    RefusedRule,
    shape_told,
)
from pytest_gradcheck.checks.named import by_name
from pytest_gradcheck.checks.problem import Call, Problem
from pytest_gradcheck.checks.projection import Cotangents, is_bilinear
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics import precision

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class WrongDerivative(Exception):  # noqa: N818  # a finding on its way, not a fault of ours
    """A derivative that is wrong by its form, before any number is compared."""

    def __init__(self, code: str, where: str, message: str) -> None:
        super().__init__(message)
        self.code, self.where, self.message = code, where, message


def of_form(problem: Problem, refused: RefusedRule) -> WrongDerivative:
    """A refusal of the framework, with the path of the input where that is known."""
    where, argument = "", refused.argument
    if refused.spot is not None:
        where = problem.names[refused.spot]
    elif argument is not None and type(problem.call(problem.point).fn).__name__ == "custom_vjp":
        group = [name for name in dict.fromkeys(problem.groups) if name][argument[0]]
        pairs = zip(problem.leaves, problem.groups, strict=True)
        paths = [leaf.path for leaf, owner in pairs if owner == group]
        where = paths[0] if len(paths) == 1 else ""
    message = refused.message.replace("{input}", where or refused.input)
    return WrongDerivative(refused.code, where, message)


class Derivative(Protocol):
    """One way of getting the gradient under test."""

    def function(self, problem: Problem) -> Function:
        """The function itself, of the inputs under test."""

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """Gradient at the problem's point, None for an input that it does not reach.

        Raises:
            WrongDerivative: Wrong count, shape or type.
        """


class _Plain:
    def function(self, problem: Problem) -> Function:
        """The function itself, of the inputs under test."""
        return problem.run


@dataclass(frozen=True)
class Automatic(_Plain):
    """Reverse mode of the framework."""

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """The framework's vector-Jacobian product."""
        return problem.backend.vjp(problem.run, problem.point, cotangents)


@dataclass(frozen=True)
class Uncast(Automatic):
    """The framework's derivative beside a function without casts to lower precisions."""

    clean: Function

    def function(self, problem: Problem) -> Function:
        """The clean function."""
        return self.clean


@dataclass(frozen=True)
class HandGrad(_Plain):
    """``grad(*args)``: the gradient of a scalar function."""

    grad: Callable[..., Any]
    form: ClassVar[str] = "grad({})"

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """The returned gradient; the function runs just before, for those that keep a cache."""
        _require_scalar(outputs, "grad=", "vjp= or jac=")
        call = _after_a_run(problem)
        return match(problem, self.grad(*call.args, **call.kwargs))


@dataclass(frozen=True)
class HandVjp(_Plain):
    """``vjp(cotangent, *args)``: the vector-Jacobian product."""

    vjp: Callable[..., Any]
    form: ClassVar[str] = "vjp(cotangent, {})"

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """The returned product; the function runs just before, for those that keep a cache."""
        call = _after_a_run(problem)
        convert = problem.backend.convert  # a copy: the function may write into it
        nested = outputs.rebuild([None if w is None else convert(w) for w in cotangents])
        return match(problem, self.vjp(nested, *call.args, **call.kwargs))


@dataclass(frozen=True)
class HandJac(_Plain):
    """``jac(*args)``: the whole Jacobian, shape output + input for each input."""

    jac: Callable[..., Any]
    form: ClassVar[str] = "jac({})"

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """The transposed Jacobian applied to the cotangent."""
        if len(outputs.leaves) != 1:
            raise UsageError(
                f"jac= takes a function with one output array, this one has "
                f"{len(outputs.leaves)}; use vjp="
            )
        call = _after_a_run(problem)
        jacobian = match(problem, self.jac(*call.args, **call.kwargs), outputs.leaves[0].shape)
        weight = cotangents[0]
        return [
            None if part is None else _transposed_times(problem.backend, part, weight, leaf)
            for part, leaf in zip(jacobian, problem.inputs, strict=True)
        ]


@dataclass(frozen=True)
class ValueAndGrad:
    """A function that returns ``(value, gradient)`` itself."""

    def function(self, problem: Problem) -> Function:
        """The first of the two."""
        return lambda point: self._both(problem.call(point))[0]

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """The second of the two."""
        _require_scalar(outputs, "value_and_grad=True", "vjp= or jac=")
        return match(problem, self._both(problem.call(problem.fresh()))[1])

    def _both(self, call: Call) -> tuple[Any, Any]:
        both = call()
        if not isinstance(both, (tuple, list)) or len(both) != 2:
            raise UsageError(
                f"value_and_grad=True: the function must return (value, gradient), "
                f"got {type(both).__name__}"
            )
        return both[0], both[1]


def _after_a_run(problem: Problem) -> Call:
    """Fresh arguments, after the function ran on a copy of them (and filled its cache)."""
    problem.call(problem.fresh())()
    return problem.call(problem.fresh())


def choose(
    grad: Callable[..., Any] | None,
    vjp: Callable[..., Any] | None,
    jac: Callable[..., Any] | None,
    value_and_grad: bool,
) -> Derivative:
    """The derivative under test from the arguments of the call; at most one may be given.

    Raises:
        UsageError: More than one is given, or one is not callable.
    """
    given = {"grad": grad, "vjp": vjp, "jac": jac}
    named = [name for name, value in given.items() if value is not None]
    named += ["value_and_grad"] if value_and_grad else []
    if len(named) > 1:
        raise UsageError(f"give one derivative to check, not {len(named)}: {', '.join(named)}")
    for name, value in given.items():
        if value is not None and not callable(value):
            raise UsageError(f"{name}= must be a function, got {type(value).__name__}")
    if grad is not None:
        return HandGrad(grad)
    if vjp is not None:
        return HandVjp(vjp)
    if jac is not None:
        return HandJac(jac)
    return ValueAndGrad() if value_and_grad else Automatic()


def match(problem: Problem, tree: Any, prefix: tuple[int, ...] = ()) -> list[Array | None]:
    """A hand-written derivative as one array for each input under test.

    Leaves go by name where the names agree (a dict of gradients in any order), else by order.

    Args:
        problem: The problem whose inputs are to be matched.
        tree: What the hand-written function returned.
        prefix: Shape that stands before each input's own (the output's, for a Jacobian).

    Raises:
        UsageError: Parts with names that no input has.
        WrongDerivative: Wrong count, shape or type.
    """
    if tree is None:
        told = "the derivative is None; return one array for each input (forgot a return?)"
        raise WrongDerivative("gradient-missing", "", told)
    tree = tree.toarray() if hasattr(tree, "toarray") else tree  # scipy.sparse
    # Inputs without elements are not under test, so their derivatives are not asked for.
    leaves = [leaf for leaf in problem.backend.flatten(tree).leaves if leaf.size]
    ordered = by_name(problem, tree, leaves) or list(leaves)
    if len(ordered) != len(problem.inputs):
        raise WrongDerivative(
            "gradient-count",
            "",
            f"the derivative has {len(ordered)} parts, the inputs under test are "
            f"{len(problem.inputs)}: {', '.join(problem.names[:6])}; return one part for each, "
            f"or name the inputs it is for with wrt=",
        )
    pairs = zip(ordered, problem.inputs, problem.names, strict=True)
    return [_checked(problem, got, want, name, prefix) for got, want, name in pairs]


def _checked(
    problem: Problem, got: Leaf, want: Leaf, name: str, prefix: tuple[int, ...]
) -> Array | None:
    if got.value is None:
        return None
    if not got.dtype and type(got.value) in (float, complex):
        got = problem.backend.flatten(problem.backend.convert(got.value)).leaves[0]
    if not got.dtype:
        kind = getattr(got.value, "dtype", type(got.value).__name__)
        raise WrongDerivative(
            "gradient-dtype",
            name,
            f"the derivative for {name} is of type {kind}; it must be floating-point like the "
            f"input ({want.dtype})",
        )
    shape = prefix + want.shape
    if got.shape != shape and not _same_matrix(got, want, prefix):
        what = "the Jacobian" if prefix else "the derivative"
        told = shape_told(what, got.shape, shape).replace("{input}", name)
        raise WrongDerivative("gradient-shape", name, told)
    if precision.epsilon(got.dtype) > precision.epsilon(want.dtype):
        raise WrongDerivative(
            "gradient-dtype",
            name,
            f"the derivative for {name} is {got.dtype}, coarser than the input ({want.dtype})",
        )
    return got.value


def _same_matrix(got: Leaf, want: Leaf, prefix: tuple[int, ...]) -> bool:
    # A Jacobian may come as the matrix (output size, input size) that SciPy passes around.
    rows = 1
    for extent in prefix:
        rows *= extent
    return bool(prefix) and got.shape == (rows, want.size)


def _transposed_times(backend: Backend, jacobian: Array, weight: Array, leaf: Leaf) -> Array:
    # Operators and reshape exist alike in every framework's arrays; no import is needed.
    if "complex" in str(jacobian.dtype) and not is_bilinear(backend):
        jacobian = jacobian.conj()
    flat = weight.reshape(-1) @ jacobian.reshape((-1, leaf.size))
    return flat.reshape(leaf.shape)


def _require_scalar(outputs: Flat, form: str, other: str) -> None:
    leaves = outputs.leaves
    if len(leaves) == 1 and leaves[0].size == 1:
        return
    shapes = ", ".join(str(leaf.shape) for leaf in leaves)
    raise UsageError(
        f"{form} is for a function with one number as output, this one returns {shapes}; "
        f"use {other}"
    )
