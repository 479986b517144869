"""Calls of a functional step that only add to a window, and those that leave a batch out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gathering:
    """The calls after the last update.

    Args:
        calls: How many there were.
        same: How many of them returned parameters and state as they were.
        shows: Whether a call that adds to a window was seen to change the state.
        waits: Whether the last call made no update.
        is_idle: Whether it left its batch out.
        trusts: Whether one that returns everything as it was is known to leave its batch out, and
            what changes the state after it and nothing else to gather.
        is_doubtful: Whether there was such a call.
    """

    calls: int = 0
    same: int = 0
    shows: bool = False
    waits: bool = False
    is_idle: bool = False
    trusts: bool = False
    is_doubtful: bool = False

    def after(self, wanted: int, is_still: bool, is_same: bool) -> Gathering:
        """What is known after one more call.

        One that returns everything as it was may gather gradients elsewhere. Where those that
        gather show in the state, it leaves its batch out, and is none of the window.

        Args:
            wanted: The calls of a full window, as claimed.
            is_still: Whether it returned the parameters as they were.
            is_same: Whether it returned the state so, too.
        """
        calls, same = self.calls + 1, self.same + is_same
        is_changed = is_still and not is_same and calls - same < wanted
        is_doubtful = is_changed and calls >= wanted and not self.shows
        shows = self.shows or (is_changed and (calls < wanted or self.trusts))
        is_idle = (shows or self.trusts) and is_same and wanted > 1
        if is_still and (is_idle or calls - (same if shows else 0) < wanted):
            return Gathering(calls, same, shows, True, is_idle, self.trusts, is_doubtful)
        return Gathering(shows=shows, trusts=self.trusts, is_doubtful=is_doubtful)
