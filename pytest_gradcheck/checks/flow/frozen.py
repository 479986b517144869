"""What is declared frozen: whether it is there, and whether it stays as it is."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from pytest_gradcheck.checks.flow.passes import Passes, constant
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

CLOSEST = 3  # names that are told where none fits


def is_declared(name: str, frozen: Sequence[str]) -> bool:
    """Whether a parameter is declared frozen, by name or path glob."""
    return any(fnmatch.fnmatchcase(name, p) or name.startswith(f"{p}.") for p in frozen)


def require_fitting(passes: Passes, frozen: Sequence[str]) -> None:
    """Refuse a declaration of parameters that are not there: a misspelt one would do nothing.

    Raises:
        UsageError: No parameter fits a name or glob.
    """
    one = passes.seen[0]
    names = [p.name for p in one.parameters] or [y.name for y in one.layers]
    for glob in frozen:
        if not any(is_declared(name, (glob,)) for name in names):
            paths = dict.fromkeys([*names, *(n.rpartition(".")[0] for n in names if "." in n)])
            close = difflib.get_close_matches(glob, paths, CLOSEST, 0.0)
            raise UsageError(
                f"frozen={glob!r} fits no parameter; the closest: {', '.join(map(repr, close))}"
            )


def moving(passes: Passes, frozen: Sequence[str]) -> list[Symptom]:
    """Parameters that are declared frozen and get a gradient, or are moved by the optimizer."""
    parameters = [one.parameters for one in passes.seen]
    names = constant(parameters, lambda p: p.trainable and p.gradient > 0 and p.update != 0)
    moved = [n for n in names if is_declared(n, frozen)]
    if not moved:
        return []
    certain = constant(parameters, lambda p: p.update > 0)
    is_moved = any(n in certain for n in moved)
    what = "is moved by the optimizer" if is_moved else "gets a gradient, as what trains does"
    others = f", as {len(moved) - 1} more" if moved[1:] else ""
    return [
        Symptom(
            "thawed",
            moved[0],
            f"{moved[0]} is declared frozen and {what}{others}",
            (("parameters", len(moved)),),
            "fail" if is_moved else "warn",
        )
    ]
