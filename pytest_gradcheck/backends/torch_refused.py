"""What PyTorch's engine refuses of a custom backward, told from its words and the graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pytest_gradcheck.backends.refused import RefusedRule, shape_told
from pytest_gradcheck.backends.torch_contracts import custom_nodes

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_SHAPE = re.compile(
    r"Function (\S+) returned an invalid gradient at index (\d+) - "
    r"got \[([\d, ]*)\] but expected shape compatible with \[([\d, ]*)\]"
)
_COUNT = re.compile(
    r"function (\S+) returned an incorrect number of gradients \(expected (\d+), got (\d+)\)"
)
_KIND = re.compile(r"expected Variable or None \(got (\S+)\)")


def refused(
    error: BaseException, outputs: Sequence[Any], inputs: Sequence[Any]
) -> Exception | None:
    """The refusal that an error of a backward pass is, or None.

    Args:
        error: What the pass raised.
        outputs: Tensors that it started from.
        inputs: Tensors that it went to.
    """
    told = str(error)
    if found := _SHAPE.match(told):
        name, index = found[1], int(found[2])
        message = shape_told(f"backward of {_written(name)}", _shape(found[3]), _shape(found[4]))
        own = f"input {index} of {_written(name)}"
        return RefusedRule("gradient-shape", message, own, _spot(name, index, outputs, inputs))
    if found := _COUNT.match(told):
        rule = f"backward of {_written(found[1])}"
        return RefusedRule(
            "gradient-count",
            f"{rule} returns {_count(found[3], 'gradient')} for {_count(found[2], 'input')}; "
            f"return one for each input of forward, None for those that need none",
        )
    if found := _KIND.match(told):
        rules = {_written(node.name()) for node in custom_nodes(outputs)}
        rule = f"backward of {rules.pop()}" if len(rules) == 1 else "a backward"
        return RefusedRule(
            "gradient-dtype", f"{rule} returns a {found[1]}, not a tensor; return a tensor or None"
        )
    return None


def _written(name: str) -> str:
    """The function as its author calls it."""
    return name.removesuffix("Backward")


def _count(number: str, what: str) -> str:
    return f"{number} {what}" + "s" * (number != "1")


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n.strip())


def _spot(name: str, index: int, outputs: Sequence[Any], inputs: Sequence[Any]) -> int | None:
    """Which of the inputs a node of that name gets as its input of an index, if it is one."""
    for node in custom_nodes(outputs):
        if node.name() == name and index < len(node.next_functions):
            variable = getattr(node.next_functions[index][0], "variable", None)
            found = next((k for k, x in enumerate(inputs) if x is variable), None)
            if found is not None:
                return found
    return None
