"""Bars of a table of sizes: width, order, the row that is meant."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.reports import chart
from pytest_gradcheck.results import Evidence


def table(sizes):
    rows = tuple((f"layer{n}", size) for n, size in enumerate(sizes))
    return Evidence(name="layers", title="", columns=("layer", "flow"), rows=rows)


def test_bars_are_as_long_as_the_logarithm():
    lines = chart.bars(table([1e-4, 1e-2, 1.0]), "layer", "flow", "layer1")
    assert [line.count("█") for line in lines] == [1, 15, 30]
    assert lines[0].split() == ["layer0", "█", "1.0e-04"]
    assert lines[1].endswith("1.0e-02 <")


def test_what_has_no_size_has_no_bar():
    lines = chart.bars(table([None, 0.0, math.nan, 1.0]), "layer", "flow")
    assert [line.split()[1:] for line in lines[:3]] == [["none"]] * 3
    assert chart.bars(table([None, 0.0]), "layer", "flow") == []


def test_of_many_layers_some_are_shown_with_the_ends_and_the_one_that_is_meant():
    lines = chart.bars(table([1.0] * 100), "layer", "flow", "layer51")
    assert len(lines) == chart.ROWS + 1
    names = [line.split()[0] for line in lines]
    assert (names[0], names[-1]) == ("layer0", "layer99")
    assert "layer51" in names


@given(st.lists(st.none() | st.floats(), max_size=40), st.text(min_size=1, max_size=60))
def test_no_line_is_longer_than_the_terminal(sizes, name):
    rows = tuple((f"{name}{n}", size) for n, size in enumerate(sizes))
    evidence = Evidence(name="layers", title="", columns=("layer", "flow"), rows=rows)
    assert all(len(line) <= 74 for line in chart.bars(evidence, "layer", "flow", f"{name}0"))
