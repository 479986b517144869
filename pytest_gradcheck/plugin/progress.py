"""Progress of a long check, on a terminal: by tqdm where it is installed, else nothing.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from typing import Any

DELAY = 2.0  # seconds before anything is shown: most checks are over by then


class Progress:
    """A bar that appears when a check takes long, and goes when the next one begins.

    Args:
        stream: The terminal itself, past the capture of output.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._bar: Any = None
        self._last, self._began = 0, 0.0

    def __call__(self, label: str, evaluations: int) -> None:
        """Count one evaluation of a check."""
        if evaluations <= self._last or not self._last:  # another check
            self.close()
            self._began = time.monotonic()
        self._last = evaluations
        if self._bar is None and time.monotonic() - self._began > DELAY:
            self._bar = self._opened(label)
        if self._bar is not None:
            self._bar.update(evaluations - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._last = None, 0

    def _opened(self, label: str) -> Any:
        from tqdm import tqdm

        return tqdm(desc=f"gradcheck {label}", unit=" evaluations", file=self._stream, leave=False)


def on_terminal(config: Any) -> Progress | None:
    """Progress on the terminal of a run; None where there is none, or no tqdm."""
    from importlib.util import find_spec

    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or find_spec("tqdm") is None:
        return None
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        stream = _past_capture(reporter._tw._file)
    if stream is None:
        return None
    config.add_cleanup(stream.close)
    return Progress(stream)


def _past_capture(stream: Any) -> Any:
    """A second way to the terminal, which a test's capture of output does not turn off."""
    try:
        if not stream.isatty():
            return None
        return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding)
    except (OSError, ValueError):
        return None
