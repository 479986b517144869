"""The parts of a hand-written derivative by the names of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gradcheck.backends import Leaf, tree
from pytest_gradcheck.checks.problem import Problem
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def by_name(problem: Problem, returned: Any, leaves: Sequence[Leaf]) -> list[Leaf] | None:
    """The leaves of what was returned in the order of the inputs; None where names do not tell.

    Args:
        problem: The problem whose inputs are to be matched.
        returned: A dict of parts, or a sequence with one part for each argument, by position.
        leaves: Its leaves.

    Raises:
        UsageError: It has names, and they are not those of the inputs.
    """
    groups = [problem.groups[i] for i in problem.selected]
    order = list(dict.fromkeys(groups))
    found = {leaf.path: leaf for leaf in leaves}
    if isinstance(returned, (tuple, list)) and len(returned) == len(order):
        found = {_by_argument(path, order): leaf for path, leaf in found.items()}
    names = list(problem.names)
    stripped = [_inside(name, group) for name, group in zip(names, groups, strict=True)]
    for known in (names, stripped):
        if len(set(known)) == len(known) and set(known) == set(found):
            return [found[name] for name in known]
    _require_known(problem, returned, order)
    return None


def _by_argument(path: str, order: Sequence[str]) -> str:
    position, _, rest = path.partition(".")
    # The fields of a named tuple have names of their own.
    return tree.join(order[int(position)], rest) if position.isdigit() else path


def _inside(name: str, group: str) -> str:
    return name.removeprefix(group).removeprefix(".")


def _require_known(problem: Problem, returned: Any, order: Sequence[str]) -> None:
    """Refuse a dict whose names are not those of the inputs: by order it may be the wrong one.

    Raises:
        UsageError: Lists the names on both sides.
    """
    parts = (
        [(group, part) for group, part in zip(order, returned, strict=False)]
        if isinstance(returned, (tuple, list))
        else [("", returned)]
    )
    for group, part in parts:
        if not isinstance(part, Mapping):
            continue
        known = _known(problem, group)
        keys = [str(key) for key in part]
        foreign = [k for k in keys if k not in known and not k.isdigit()]
        if foreign and not any(name.startswith("args.") for name in problem.names):
            inputs = ", ".join(problem.names[:12])
            raise UsageError(
                f"the derivative has parts named {', '.join(keys[:12])}, the inputs under test "
                f"are named {inputs}; use the same names, or return the parts in their order"
            )


def _known(problem: Problem, group: str) -> set[str]:
    """First words of the names that a part may have, from the top or inside its argument."""
    paths = {leaf.path: owner for leaf, owner in zip(problem.leaves, problem.groups, strict=True)}
    inside = [_inside(path, owner) for path, owner in paths.items() if group in ("", owner)]
    return {name.partition(".")[0] for name in [*inside, *([] if group else paths)]}
