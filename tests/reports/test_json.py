"""The JSON report is strict, and written whole or not at all."""

import json as standard
import os
import stat
from pathlib import Path

import pytest

from pytest_gradcheck.reports import json
from pytest_gradcheck.reports import run as runs


def only(folder):
    return [path.name for path in folder.iterdir()]


def test_text_is_written_as_utf8(tmp_path):
    json.write("é ∂ \U0001f600\n", tmp_path / "report.json")
    assert (tmp_path / "report.json").read_bytes() == "é ∂ \U0001f600\n".encode()
    assert only(tmp_path) == ["report.json"]


def test_a_report_replaces_an_older_one(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("much longer than the new one")
    json.write("new", path)
    assert path.read_text() == "new"


def fail(*args, **kwargs):
    raise OSError("the disk is full")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [fail, interrupt])
@pytest.mark.parametrize(("owner", "step"), [(os, "fdopen"), (Path, "chmod"), (Path, "replace")])
def test_a_write_that_fails_leaves_the_old_report_and_nothing_else(
    tmp_path, monkeypatch, owner, step, stop
):
    path = tmp_path / "report.json"
    path.write_text("old")
    monkeypatch.setattr(owner, step, stop)
    with pytest.raises((OSError, KeyboardInterrupt)):
        json.write("new", path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert only(tmp_path) == ["report.json"]


def test_a_missing_directory_is_made(tmp_path):
    json.write("new", tmp_path / "missing" / "report.json")
    assert (tmp_path / "missing" / "report.json").read_text("utf-8") == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_has_the_permissions_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        json.write("new", tmp_path / "report.json")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o666 & ~mask


def test_non_ascii_text_is_readable_and_nan_is_refused():
    run = runs.Run(tests=(runs.Test(nodeid="test_é.py::test[∂]"),))
    assert "test_é.py::test[∂]" in json.render(run)
    with pytest.raises(ValueError, match="not JSON compliant"):
        json.render(runs.Run(extra=(("other", float("nan")),)))
    with pytest.raises(TypeError):
        json.render(runs.Run(extra=(("other", object()),)))


def test_a_lone_surrogate_of_another_plugin_survives(tmp_path):
    path = tmp_path / "report.json"
    json.write(json.render(runs.Run(extra=(("other", "a\udcff"),))), path)
    assert standard.loads(path.read_text("utf-8"))["extra"] == {"other": "a\udcff"}
