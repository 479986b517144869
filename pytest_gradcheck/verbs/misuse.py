"""A call whose arguments do not fit the verb, told in the verb's own words."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import VERBS
from pytest_gradcheck.verbs.foreign import hint

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def is_of_the_call(error: TypeError) -> bool:
    """Whether arguments did not fit: caught where the call was made, nothing of it has run."""
    return error.__traceback__ is None or error.__traceback__.tb_next is None


def refusal(
    check: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> UsageError:
    """What is wrong with the arguments of a call.

    Args:
        check: The verb.
        name: Its name.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """
    parameters = inspect.signature(check).parameters.values()
    by_position = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    known = [p.name for p in parameters]
    shown = _as_written(name)
    unknown = next((k for k in kwargs if k not in known), None)
    if unknown is not None:
        told = hint(unknown, known, difflib.get_close_matches(unknown, known, 1))
        return UsageError(
            f"{shown} has no argument {unknown!r}{told} (it takes {', '.join(known)})"
        )
    if len(args) > len(by_position):
        names = [p.name for p in by_position]
        batch = "; put the parts of a batch into one tuple" if names[-1] == "batch" else ""
        return UsageError(
            f"{shown} takes {', '.join(names)} by position, and got {len(args)} values; all "
            f"others go by keyword{batch}"
        )
    twice = next((p.name for p in by_position[: len(args)] if p.name in kwargs), None)
    if twice is not None:
        order = ", ".join(p.name for p in by_position)
        return UsageError(
            f"{shown} got {twice} twice, by position and by keyword; by position it takes {order}"
        )
    missing = [p.name for p in by_position[len(args) :] if p.default is p.empty]
    missing = [name for name in missing if name not in kwargs]
    return UsageError(f"{shown} needs {' and '.join(missing)}: {shown.split()[0]}({missing[0]}, …)")


def _as_written(name: str) -> str:
    """The verb as a fixture too, where the function that asserts was called: they are the same."""
    fixture = {f"assert_{check}": verb for verb, check in VERBS.items()}.get(name)
    return f"{fixture} ({name})" if fixture else name
