"""The form of a derivative: one part for each input, each of its shape and type."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_gradcheck.backends import Array, Leaf, RefusedRule, shape_told
from pytest_gradcheck.checks.named import by_name
from pytest_gradcheck.checks.problem import Problem
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
    tree = _dense(tree)
    # Inputs without elements are not under test, so their derivatives are not asked for.
    leaves = [leaf for leaf in problem.backend.flatten(tree).leaves if leaf.size]
    if len(leaves) == 1 and leaves[0].shape == (*prefix, len(problem.inputs)):
        leaves = _split(problem, leaves[0]) or leaves
    ordered = by_name(problem, tree, leaves) or list(leaves)
    if len(ordered) != len(problem.inputs):
        raise WrongDerivative(
            "gradient-count",
            "",
            f"the derivative has {len(ordered)} part{'s' * (len(ordered) != 1)}, the inputs "
            f"under test are {len(problem.inputs)}: {', '.join(problem.names[:6])}; return one "
            f"part for each, or name the inputs it is for with wrt=",
        )
    pairs = zip(ordered, problem.inputs, problem.names, strict=True)
    return [_checked(problem, got, want, name, prefix) for got, want, name in pairs]


def _dense(tree: Any) -> Any:
    """A matrix of ``scipy.sparse``, or an operator that stands for one, as an array."""
    if hasattr(tree, "toarray"):
        return tree.toarray()
    return tree @ np.eye(tree.shape[1]) if hasattr(tree, "matmat") else tree


def _split(problem: Problem, whole: Leaf) -> list[Leaf]:
    """The last axis of one array as parts for a list of numbers; none for other inputs."""
    groups = {problem.groups[i] for i in problem.selected}
    count = len(problem.inputs)
    if count == 1 or len(groups) > 1 or any(leaf.shape for leaf in problem.inputs):
        return []
    return list(problem.backend.flatten([whole.value[..., k] for k in range(count)]).leaves)


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
