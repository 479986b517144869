"""Progress of a long check: on a terminal only, gone when the check is over."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from pytest_gradcheck.plugin import progress

SLOW = """
import time

def test_slow(gradcheck, monkeypatch):
    monkeypatch.setattr("pytest_gradcheck.plugin.progress.DELAY", 0.0)

    def slow(x):
        time.sleep(0.01)
        return square(x)

    gradcheck(slow, X, grad=right)
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_long_check_shows_a_bar(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    terminal = Terminal()
    bar = progress.Progress(terminal)
    for count in range(1, 50):
        bar("loss", count)
    assert "gradcheck loss" in terminal.getvalue()
    assert "evaluations" in terminal.getvalue()
    bar.close()
    assert terminal.getvalue().endswith("\r")  # the line is free again


def test_a_short_check_shows_nothing():
    terminal = Terminal()
    bar = progress.Progress(terminal)
    for count in range(1, 50):
        bar("loss", count)
    bar.close()
    assert terminal.getvalue() == ""


def test_another_check_starts_another_bar(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    terminal = Terminal()
    bar = progress.Progress(terminal)
    for label in ("first", "second"):
        for count in range(1, 5):
            bar(label, count)
    assert "gradcheck first" in terminal.getvalue()
    assert "gradcheck second" in terminal.getvalue()


def test_without_a_terminal_nothing_is_shown(project):
    project.tests(SLOW)
    result = project.run("--color=yes")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*evaluations/s*")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminal")
def test_on_a_terminal_the_bar_passes_the_capture(project):
    project.tests(SLOW)
    shown = on_a_terminal(sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:xdist")
    assert "gradcheck slow" in shown
    assert "1 passed" in shown


def on_a_terminal(*command):
    """What a command writes to a terminal; by no fork, which a process with threads must not do."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read(ours), b""))
        assert process.wait() == 0
    os.close(ours)
    return shown.decode("utf-8", "replace")


def read(descriptor):
    try:
        return os.read(descriptor, 1024)
    except OSError:  # the other end is closed: how Linux tells the end
        return b""
