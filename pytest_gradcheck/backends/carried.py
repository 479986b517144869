"""The state that a functional step carries along, where its loss takes it, too."""

from __future__ import annotations

from typing import Any


class Carried:
    """Noted and set as generators are: a loss is what it is with the state before its step.

    Args:
        owner: What has the state.
        name: Its attribute.
    """

    draws = False

    def __init__(self, owner: object, name: str) -> None:
        self._owner, self._name = owner, name

    def get(self) -> Any:
        """The state now."""
        return getattr(self._owner, self._name)

    def set(self, state: Any) -> None:
        """Another state."""
        setattr(self._owner, self._name, state)

    def has_moved(self, state: Any) -> bool:
        """It is nothing that is drawn from."""
        return False
