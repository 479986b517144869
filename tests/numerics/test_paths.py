"""What arrives along the paths of a graph, against cases that can be counted by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.numerics import paths


def made(parents, flows, ends=None):
    kept = [not math.isnan(f) for f in flows]
    graph = paths.graph(parents, kept, ends or [True] * len(flows))
    logs = {n: math.log10(f) if f else -math.inf for n, f in enumerate(flows) if kept[n]}
    return graph, paths.kept(graph, logs), paths.grown(graph, logs)


def test_a_chain_is_compared_with_its_end():
    _, kept, grown = made([(), (0,), (1,)], [0.01, 0.1, 10.0])
    assert kept == pytest.approx({0: -3, 1: -2, 2: 0})
    assert grown == pytest.approx(kept)


def test_a_small_contribution_is_no_loss():
    # 0 -> 1 -> 4, and 2 -> 3 -> 4 that contributes a millionth
    graph, kept, _ = made([(), (0,), (), (2,), (1, 3)], [1.0, 1.0, 1e-6, 1e-6, 1.0])
    assert graph.starts == (0, 2)
    assert kept[2] == kept[0] == pytest.approx(0)
    _, kept, _ = made([(), (0,), (), (2,), (1, 3)], [1.0, 1.0, 1e-9, 1e-6, 1.0])
    assert (kept[0], kept[2]) == pytest.approx((0, -3))


def test_an_end_with_little_weight_is_no_reference():
    # 0 -> 1, and 0 -> 2 with a loss of 1e-6 of the other's
    graph, kept, grown = made([(), (0,), (0,)], [1.0, 1.0, 1e-6])
    assert graph.ends == (1, 2)
    assert (kept[0], grown[0]) == pytest.approx((0, 0), abs=1e-6)
    # what is lost behind it stays lost: 0 -> 1 -> 2, and 0 -> 3
    _, kept, grown = made([(), (0,), (1,), (0,)], [1.0, 1e-5, 1.0, 1.0])
    assert (kept[1], grown[1]) == pytest.approx((-5, -5))


def test_what_is_not_measured_is_bridged_and_what_leads_nowhere_is_left_out():
    graph, kept, _ = made([(), (0,), (1,), (0,)], [0.1, math.nan, 1.0, 1.0], [1, 1, 1, 0])
    assert graph.parents == {0: (), 2: (0,)}
    assert kept == pytest.approx({0: -1, 2: 0})
    assert graph.after([0]) == (0, 2)


def test_nothing_that_arrives_is_minus_infinity():
    _, kept, grown = made([(), (0,), (1,)], [0.0, 0.0, 1.0])
    assert kept[0] == grown[0] == -math.inf


def test_one_number_for_loss_and_gain():
    assert paths.changed(-3.0, 2.0) == -3.0
    assert paths.changed(3.0, 2.0) == 2.0
    assert paths.changed(3.0, -2.0) == 0.0


@given(st.lists(st.floats(-6, 6), min_size=2, max_size=12), st.floats(-6, 6), st.data())
def test_the_scale_does_not_matter_and_one_end_has_all_that_arrives(logs, shift, data):
    parents = [()]
    for n in range(1, len(logs)):
        parents.append(tuple(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    _, kept, grown = made(parents, [10.0**x for x in logs])
    _, same, more = made(parents, [10.0 ** (x + shift) for x in logs])
    assert kept == pytest.approx(same, abs=1e-6)
    assert grown == pytest.approx(more, abs=1e-6)


def test_a_way_round_is_seen():
    # 0 -> 1 -> 2 -> 4 and 1 -> 4; 3 -> 4
    graph, _, _ = made([(), (0,), (1,), (), (1, 2, 3)], [1.0] * 5)
    assert graph.has_way_round([2])
    assert not graph.has_way_round([1])
    assert not graph.has_way_round([3])
    assert not graph.has_way_round([4])


def test_what_no_path_goes_round():
    # 0 -> 1 -> 3 -> 4, with 0 -> 2 -> 3 beside it
    graph = made([(), (0,), (0,), (1, 2), (3,)], [1.0] * 5)[0]
    assert graph.narrow(range(5)) == {0, 3, 4}
    assert graph.narrow((1, 3, 4)) == {1, 3, 4}
    # residual blocks: each branch is gone round, the trunk is not
    graph = made([(), (0,), (0, 1), (2,), (2, 3)], [1.0] * 5)[0]
    assert graph.narrow(range(5)) == {0, 2, 4}
    # two beginnings: each by itself is no way that all go
    graph = made([(), (), (0, 1)], [1.0] * 3)[0]
    assert graph.narrow(range(3)) == {2}
