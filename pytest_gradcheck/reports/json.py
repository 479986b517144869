"""The JSON report: strict JSON, one versioned schema, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from pytest_gradcheck.reports.run import Run


def render(run: Run) -> str:
    """The run as strict JSON (no NaN, no infinity), non-ASCII text as it is."""
    return json.dumps(run.to_plain(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write(text: str, path: Path) -> None:
    """Write a report atomically: readers see the old file or the whole new one.

    A directory that is not there is made.

    Raises:
        OSError: It cannot be made, or is not writable.
    """
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        # A lone surrogate, from another plugin's section, becomes its JSON escape.
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
