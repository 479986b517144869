"""Where results of a test gather, and the limits, seed and name it runs under.

The only mutable object of the package. A context variable finds the current one, so that plain
functions, ``unittest`` classes and watchers reach it without arguments and without pytest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pytest_gradcheck.limits import Limits

if TYPE_CHECKING:
    from pytest_gradcheck.results import Result

Listener: TypeAlias = "Callable[[Result], None]"


class Progress(Protocol):
    """Shows how far a long check is."""

    def __call__(self, label: str, evaluations: int) -> None:
        """Count one evaluation of a check."""

    def close(self) -> None:
        """The check is over."""


@dataclass(eq=False)
class Collector:
    """Results of one test, in the order in which they came.

    Args:
        test: Node id, empty outside pytest.
        resolve: Gives the limits of a verb, as flags, ini, hooks and markers leave them; asked
            once for each verb, when a check needs them.
        seed: Seed from the command line; None derives it from ``test``.
        device: Device that inputs are moved to, empty to leave them.
        is_report_only: Whether no verdict fails its test.
        on_result: Called with each result.
        progress: Told of each evaluation while a check runs: its label, and how many so far.
        here: The node id as pytest takes it in the directory where it was started.
        checked: The checks, such as ``gradient``, of which there was a result in this attempt.
    """

    test: str = ""
    resolve: Callable[[str], Limits] = Limits
    seed: int | None = None
    device: str = ""
    is_report_only: bool = False
    on_result: Listener | None = None
    progress: Progress | None = None
    here: str = ""
    checked: set[str] = field(default_factory=set)
    _limits: dict[str, Limits] = field(default_factory=dict)
    _fresh: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Keep a result and tell the listener."""
        self.checked.add(result.check)
        self._fresh.append(result)
        if self.on_result is not None:
            self.on_result(result)

    def take(self) -> list[Result]:
        """The results since the last call, which each report of a test phase carries away."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def limits_for(self, check: str) -> Limits:
        """The limits of a verb before a call narrows them."""
        if check not in self._limits:
            self._limits[check] = self.resolve(check)
        return self._limits[check]

    def test_seed(self) -> int:
        """The seed of this test: as given, else 31 bits of a hash of its name."""
        if self.seed is not None:
            return self.seed
        digest = hashlib.blake2b(self.test.encode("utf-8", "backslashreplace"), digest_size=4)
        return int.from_bytes(digest.digest(), "little") & 0x7FFFFFFF


_CURRENT: ContextVar[Collector | None] = ContextVar("gradcheck_collector", default=None)


_OPEN: list[Collector] = []  # for threads that a test starts: they inherit no context


def current() -> Collector:
    """The collector of the running test; a fresh one, which nobody reads, outside pytest."""
    return _CURRENT.get() or (_OPEN[-1] if _OPEN else Collector())


class Collecting:
    """Makes a collector the current one for a ``with`` block."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def __enter__(self) -> Collector:
        self._token = _CURRENT.set(self._collector)
        _OPEN.append(self._collector)
        return self._collector

    def __exit__(self, *exc: object) -> None:
        _OPEN.remove(self._collector)
        _CURRENT.reset(self._token)
