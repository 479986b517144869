"""Seeds are the same everywhere and for ever, and names keep them apart."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from pytest_gradcheck.numerics.seeds import derive

SEEDS = st.integers(0, 2**63)
NAMES = st.text(st.characters(exclude_characters="\0"), max_size=10) | st.integers(0, 99)

KNOWN = {
    (0,): 494742404,
    (0, "x"): 784298633,
    (1, "direction", 3): 1952218603,
    (2**31 - 1, "encoder.0.weight"): 2131786117,
    (7, "größe", "\udcff"): 455270028,
}


def test_known_seeds():
    assert {key: derive(*key) for key in KNOWN} == KNOWN


def test_another_process_derives_the_same():
    code = "from pytest_gradcheck.numerics.seeds import derive; print(derive(5, 'w', 1))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(answer.stdout) == derive(5, "w", 1)


@given(SEEDS, st.lists(NAMES, max_size=3))
def test_a_seed_has_31_bits(seed, names):
    assert 0 <= derive(seed, *names) < 2**31
    assert derive(seed, *names) == derive(seed, *names)


@given(SEEDS, st.lists(NAMES, unique_by=str, min_size=2, max_size=8))
def test_other_names_give_other_seeds(seed, names):
    assert len({derive(seed, name) for name in names}) == len(names)


def test_no_two_of_many_names_and_seeds_collide_more_than_by_chance():
    seeds = {derive(seed, f"layer.{i}") for seed in range(100) for i in range(100)}
    assert len(seeds) >= 10_000 - 2  # the expected number of collisions is 0.02


def test_where_one_name_ends_matters():
    forms = [(1, "ab"), (1, "a", "b"), (1, "", "ab"), (1, "ab", ""), (11, "ab"), (1, "1ab")]
    assert len({derive(*form) for form in forms}) == len(forms)


def test_bits_are_balanced():
    seeds = [derive(0, i) for i in range(4000)]
    for bit in range(31):
        assert 1800 < sum(seed >> bit & 1 for seed in seeds) < 2200  # six standard deviations
