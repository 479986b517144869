"""What values of a traced JAX function are made of: a variance, and the quotient of a softmax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pytest_gradcheck.backends.jax_sites import SHAPED

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Ops = Mapping[str, tuple[str, str, str]]  # of every equation: operation, place, layer
Sources = Mapping[str, tuple[str, ...]]  # keys of the values that each is computed from
# What a mean of squares goes through on its way to the max with zero that keeps it positive.
_STATISTICS = SHAPED | {"div", "mul", "sub", "add", "neg", "select_n", "square", "integer_pow"}
_SQUARES = frozenset({"square", "integer_pow", "mul"})
NONE = ("", "", "")


def is_softmax(ops: Ops, sources: Sources, origin: Sequence[str]) -> bool:
    """Whether a quotient is that of an exponential and a sum of exponentials."""
    if len(origin) != 2 or ops.get(origin[0], NONE)[0] != "exp":
        return False
    key = origin[1]
    while ops.get(key, NONE)[0] in SHAPED:
        key = next(iter(sources.get(key, ())), "")
    summed = sources.get(key, ("",))[:1]
    is_sum = ops.get(key, NONE)[0] == "reduce_sum"
    return is_sum and ops.get(summed[0], NONE)[0] == "exp"


def is_variance(ops: Ops, sources: Sources, origin: Sequence[str]) -> bool:
    """Whether a value is made of means alone, one of them of squares."""
    ends = [end for key in origin for end in _means(ops, sources, key)]
    return bool(ends) and all(ends) and any(_of_squares(ops, sources, end) for end in ends)


def _means(ops: Ops, sources: Sources, key: str) -> Iterator[str]:
    """The sums that a value is made of; nothing for each that is anything else."""
    op = ops.get(key, NONE)[0]
    if op == "reduce_sum":
        yield key
    elif op in _STATISTICS:
        for source in sources[key]:
            yield from _means(ops, sources, source)
    elif op not in ("gt", "ge", "lt", "le", "eq", "ne"):  # the condition of a choice
        yield ""


def _of_squares(ops: Ops, sources: Sources, key: str) -> bool:
    for source in sources[key]:
        op, made = ops.get(source, NONE)[0], sources.get(source, ())
        if op in _SQUARES and (op != "mul" or len(set(made)) == 1 < len(made)):
            return True
    return False
