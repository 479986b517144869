"""Loops that are right and unusual: silent as they are, and caught with one mistake in them."""

import importlib
import sys
from pathlib import Path

import pytest

from pytest_gradcheck import check_step

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
LOOPS = importlib.import_module("corpora.steps_loops_more").LOOPS
sys.path.pop(0)


@pytest.mark.parametrize("name", LOOPS)
def test_a_right_loop_is_not_accused(name):
    build, claims = LOOPS[name]
    result = check_step(lambda: build(False), **claims)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("name", LOOPS)
def test_a_mistake_in_it_is(name):
    build, claims = LOOPS[name]
    result = check_step(lambda: build(True), **claims)
    assert result.verdict == "fail"
    assert "gradient" in result.headline
