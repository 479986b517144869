"""The derivative under test: the framework's own, or a hand-written one in any of its four forms.

Each form answers the same question: the gradient of the inner product of given cotangents with the
function, one array for each input under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pytest_gradcheck.backends import (
    Array,
    Backend,
    Flat,
    Function,
    Leaf,
)
from pytest_gradcheck.checks.form import match
from pytest_gradcheck.checks.problem import Call, Problem
from pytest_gradcheck.checks.projection import Cotangents, is_bilinear
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class Derivative(Protocol):
    """One way of getting the gradient under test.

    ``takes_cotangent`` tells whether it multiplies by the cotangent itself.
    """

    takes_cotangent: ClassVar[bool]

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
    takes_cotangent: ClassVar[bool] = False

    def function(self, problem: Problem) -> Function:
        """The function itself, of the inputs under test."""
        return problem.run


@dataclass(frozen=True)
class Automatic(_Plain):
    """Reverse mode of the framework."""

    takes_cotangent: ClassVar[bool] = True

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
        return match(problem, asked(problem, self.grad))


@dataclass(frozen=True)
class HandVjp(_Plain):
    """``vjp(cotangent, *args)``: the vector-Jacobian product."""

    vjp: Callable[..., Any]
    form: ClassVar[str] = "vjp(cotangent, {})"
    takes_cotangent: ClassVar[bool] = True

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """The returned product; the function runs just before, for those that keep a cache."""
        convert = problem.backend.convert  # a copy: the function may write into it
        nested = outputs.rebuild([None if w is None else convert(w) for w in cotangents])
        return match(problem, asked(problem, self.vjp, nested))


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
        jacobian = match(problem, asked(problem, self.jac), outputs.leaves[0].shape)
        weight = cotangents[0]
        return [
            None if part is None else _transposed_times(problem.backend, part, weight, leaf)
            for part, leaf in zip(jacobian, problem.inputs, strict=True)
        ]


@dataclass(frozen=True)
class ValueAndGrad:
    """A function that returns ``(value, gradient)`` itself."""

    takes_cotangent: ClassVar[bool] = False

    def function(self, problem: Problem) -> Function:
        """The first of the two."""
        return lambda point: self._both(problem.call(point))[0]

    def gradient(
        self, problem: Problem, outputs: Flat, cotangents: Cotangents
    ) -> list[Array | None]:
        """The second of the two."""
        if any(leaf.shape for leaf in outputs.leaves):
            second = problem.backend.flatten(self._fresh(problem)[1]).leaves
            if len(second) == 1 and not second[0].shape:
                raise UsageError(
                    "value_and_grad=True: the function returns (gradient, value); it must return "
                    "(value, gradient)"
                )
        _require_scalar(outputs, "value_and_grad=True", "vjp= or jac=")
        return match(problem, self._fresh(problem)[1])

    def _fresh(self, problem: Problem) -> tuple[Any, Any]:
        with problem.backend.mode(problem.point):
            return self._both(problem.call(problem.fresh()))

    def _both(self, call: Call) -> tuple[Any, Any]:
        both = call()
        if not isinstance(both, (tuple, list)) or len(both) != 2:
            raise UsageError(
                f"value_and_grad=True: the function must return (value, gradient), "
                f"got {type(both).__name__}"
            )
        return both[0], both[1]


def asked(
    problem: Problem, own: Callable[..., Any], *first: Any, at: Sequence[Array] | None = None
) -> Any:
    """What a hand-written derivative returns, after a run of the function (some keep a cache).

    Args:
        problem: The function and its inputs.
        own: The derivative.
        *first: What it takes before the inputs of the function.
        at: Values of the inputs under test, handed over as they are; by default a copy of those of
            the problem.
    """
    with problem.backend.mode(problem.point):
        problem.call(problem.fresh())()
        call = problem.call(problem.fresh() if at is None else at)
        return own(*first, *call.args, **call.kwargs)


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
