"""What the package raises and warns: a verdict, a misuse, a verdict that was asked to be mild."""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_gradcheck.results import Result


class GradCheckError(AssertionError):
    """A check whose verdict is not green.

    An assertion error, so that pytest, ``unittest`` and absltest report it as a failed test.

    Args:
        text: The failure as a person reads it; its first line stands alone.
        result: The whole result behind the text; None when the error travelled without it.
    """

    def __init__(self, text: str, result: Result | None = None) -> None:
        super().__init__(text)
        self.result = result


class UsageError(ValueError):
    """A call, marker, flag or ini value that cannot be carried out as written."""


def brief(text: str, most: int) -> str:
    """A text in one line of at most so many characters, cut between words."""
    return textwrap.shorten(text, most, placeholder=" …")


def listed(words: Sequence[str]) -> str:
    """Words in a row, such as ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# What the user's code raised while a check ran that will raise itself; None where none will.
CAUSES: ContextVar[list[BaseException] | None] = ContextVar("gradcheck_causes", default=None)
_PACKAGE = str(Path(__file__).parent)


def told(error: BaseException) -> str:
    """An exception of the user's code in words, with the line of theirs that it came from.

    It is also kept as the cause of the failure that will tell of it.
    """
    causes = CAUSES.get()
    if causes is not None:
        causes.append(error)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(_PACKAGE)]
    own = [f for f in theirs if "site-packages" not in f.filename] or theirs
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    words = " ".join(str(error).replace("; ", ", ").split())  # after "; " stands advice
    return f"{type(error).__name__}: {words}{place}"


class GradCheckWarning(UserWarning):
    """A verdict that is neither right nor wrong, where the user asked to be warned only."""


# The public home: pytest's short summary prints the name with its module before the message.
for _public in (GradCheckError, UsageError, GradCheckWarning):
    _public.__module__ = "pytest_gradcheck"
