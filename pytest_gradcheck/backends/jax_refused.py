"""What JAX refuses of a custom rule, told from its words."""

from __future__ import annotations

import re

from pytest_gradcheck.backends.refused import RefusedRule, shape_told
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_TYPE = r"\w+\[([\d,]*)\](?:\{[^}]*\})?"
_SHAPE = re.compile(
    r"Custom VJP bwd rule must produce .* but at output\[(\d+)\](\S*) the bwd rule produced an "
    rf"output of type {_TYPE} corresponding to an input of type {_TYPE}",
    re.DOTALL,
)
_COUNT = re.compile(
    r"Custom VJP bwd rule must produce .* but got bwd output structure (.+?) for primal input "
    r"structure (.+?)\.?$",
    re.DOTALL,
)
_TANGENT = re.compile(
    r"Custom JVP rule must produce .* Expected "
    rf"{_TYPE} \(tangent type of {_TYPE}\) but got {_TYPE}",
    re.DOTALL,
)
_PAIR = re.compile(r"Custom JVP rule (\S+) for function (\S+) must produce a pair .* but got")


def refused(error: BaseException) -> Exception | None:
    """The refusal that an error of a derivative is, or what to do instead; None of others."""
    told = str(error)
    if told.startswith("Reverse-mode differentiation does not work for lax.while_loop"):
        return UsageError(
            "JAX has no reverse mode for a while loop of unknown length; check forward mode "
            "alone with modes='forward', or use lax.scan"
        )
    if found := _SHAPE.match(told):
        index, path = int(found[1]), found[2]
        got, wanted = _shape(found[3]), _shape(found[4])
        own = f"argument {index}{path} of its function"
        message = shape_told("the bwd rule", got, wanted)
        return RefusedRule("gradient-shape", message, own, argument=(index, path))
    if found := _COUNT.match(told):
        got_, wanted_ = (_structure(found[k]) for k in (1, 2))
        return RefusedRule(
            "gradient-count",
            f"the bwd rule returns {got_} for {wanted_}; return a tuple with one part for each "
            f"argument of the function, each nested like it",
        )
    if found := _TANGENT.match(told):
        got, wanted = _shape(found[3]), _shape(found[1])
        message = f"the jvp rule returns shape {got} for an output of shape {wanted}; "
        return RefusedRule("gradient-shape", f"{message}return a tangent shaped like the output")
    if found := _PAIR.match(told):
        message = f"the jvp rule {found[1]} returns no pair; return (output, its tangent)"
        return RefusedRule("gradient-count", message)
    return None


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _structure(text: str) -> str:
    """How many parts there are, where each is an array, else what is nested how."""
    plain = text.removeprefix("PyTreeDef(").removesuffix(")")
    if plain == "*":
        return "one array"
    if re.fullmatch(r"\((\*,? ?)+\)", plain):
        return f"a tuple of {plain.count('*')}"
    return plain
