"""What the user's ``make`` builds, told in their own words where it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


def made(make: Callable[..., Any], *given: Any) -> Any:
    """What ``make`` gives.

    Raises:
        UsageError: It raises.
    """
    try:
        return make(*given)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"make raised {type(error).__name__}: {error}") from error
