"""The same seed gives the same numbers: again, in another order, in another process."""

import re

import pytest

TWO = """
@pytest.mark.parametrize("name", ["one", "two"])
def test_wrong(gradcheck, name):
    gradcheck(square, X, grad=wrong, label=name)

def test_right():
    assert_gradient(square, X, grad=right)
"""


def numbers(project, *args):
    """Results of a run by test, without the one number that may change: the time."""
    project.run(*args).assert_outcomes(passed=1, failed=2)
    found = {}
    for result in project.results():
        context = result["context"]
        assert context.pop("seconds") > 0
        found[context["test"]] = result
    return found


def claimed(results):
    """Claimed derivatives along the random directions."""
    return [
        finding["numbers"]["claimed"]
        for result in results.values()
        for finding in result["findings"]
    ]


@pytest.mark.parametrize("seed", [(), ("--gradcheck-seed=42",)], ids=["own", "given"])
def test_two_runs_agree_in_every_number(project, seed):
    project.tests(TWO)
    first = numbers(project, *seed)
    assert numbers(project, *seed) == first
    assert numbers(project, *seed, "-n", "2") == first
    turned = ["test_right", "test_wrong[two]", "test_wrong[one]"]
    assert numbers(project, *seed, *(f"test_sample.py::{name}" for name in turned)) == first


def test_each_test_has_directions_of_its_own(project):
    project.tests(TWO)
    one, two = claimed(numbers(project))
    assert one != two


def test_a_given_seed_is_the_seed_of_every_test(project):
    project.tests(TWO)
    results = numbers(project, "--gradcheck-seed=42")
    assert {result["context"]["seed"] for result in results.values()} == {42}
    one, two = claimed(results)
    assert one == two
    assert claimed(numbers(project, "--gradcheck-seed=43")) != [one, two]


def test_the_printed_line_reproduces_the_numbers(project, way):
    project.tests(TWO)
    run = project.run(*way)
    line = next(line for line in run.stdout.lines if "reproduce:" in line and "one" in line)
    nodeid, seed = re.search(r"pytest '(.+)' (--gradcheck-seed=\d+)$", line).groups()
    before = [result for result in project.results() if result["label"] == "one"]
    project.run(nodeid, seed).assert_outcomes(failed=1)
    after = project.results()
    for (result,) in (before, after):
        result["context"].pop("seconds")
    assert after == before


def test_global_generators_neither_matter_nor_move(project):
    project.file(
        "conftest.py",
        """
        import random
        import numpy as np
        import pytest

        @pytest.fixture(autouse=True, params=[1, 2])
        def reseeded(request):
            random.seed(request.param)
            np.random.seed(request.param)
            yield
            random_number, numpy_number = random.random(), np.random.random()
            random.seed(request.param)
            np.random.seed(request.param)
            assert (random.random(), np.random.random()) == (random_number, numpy_number)
        """,
    )
    project.tests("def test_wrong():\n    check_gradient(square, X, grad=wrong, seed=5)")
    project.run().assert_outcomes(passed=2)
    one, two = ([f["numbers"] for f in result["findings"]] for result in project.results())
    assert one == two


def test_the_printed_line_holds_where_pytest_was_started(project, monkeypatch):
    project.tests(TWO)
    inner = project.pytester.mkdir("inner")
    monkeypatch.chdir(inner)
    run = project.run("../test_sample.py")
    line = next(line for line in run.stdout.lines if "reproduce:" in line and "one" in line)
    assert "../test_sample.py::test_wrong" in line
    (name,) = re.findall(r"pytest '?([^' ]+)", line)
    project.run(name).assert_outcomes(failed=1)
