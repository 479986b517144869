"""What the package raises and warns: a verdict, a misuse, a verdict that was asked to be mild."""

from __future__ import annotations

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


class GradCheckWarning(UserWarning):
    """A verdict that is neither right nor wrong, where the user asked to be warned only."""


# The public home: pytest's short summary prints the name with its module before the message.
for _public in (GradCheckError, UsageError, GradCheckWarning):
    _public.__module__ = "pytest_gradcheck"
