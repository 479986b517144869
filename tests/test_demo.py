"""The gallery of mistakes that ``make demo`` shows: each one is still found."""

import importlib.util
from pathlib import Path

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


def test_every_wrong_example_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.REPORTS.mkdir()
    assert demo.wrong_gradients() == []
    assert demo.results("wrong")
