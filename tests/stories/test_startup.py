"""An installed plugin that nobody uses costs nothing: no framework is loaded, not even NumPy."""

import json
import sys

import pytest

import pytest_gradcheck

HEAVY = ["numpy", "scipy", "torch", "jax", "pytest_gradcheck.checks", "pytest_gradcheck.numerics"]


@pytest.mark.parametrize(
    "module",
    ["pytest_gradcheck", "pytest_gradcheck.plugin", "pytest_gradcheck.hookspecs"],
)
def test_an_import_loads_no_framework(pytester, module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    run = pytester.run(sys.executable, "-W", "error", "-c", code)
    assert run.ret == 0
    assert run.stdout.lines == ["[]"]


def test_the_public_names_are_listed_without_loading_any(pytester):
    code = "import sys, pytest_gradcheck as g; print(*dir(g), 'numpy' in sys.modules)"
    (line,) = pytester.run(sys.executable, "-c", code).stdout.lines
    assert {*pytest_gradcheck.__all__, "False"} <= set(line.split())


SPY = """
import json, os, sys
from pathlib import Path
from pytest_gradcheck.backends import Entry

def pytest_gradcheck_backends():
    return [Entry("tiny", frozenset({"tiny"}), "tiny:BACKEND")]

def pytest_unconfigure():
    Path(f"{os.getpid()}.loaded").write_text(json.dumps(sorted(sys.modules)))
"""


def loaded(project, test, *args):
    """Heavy modules that each process of a run had loaded at its end."""
    project.file("conftest.py", SPY)
    project.file("test_light.py", test)
    run = project.run_alone("--disable-plugin-autoload", "-p", "gradcheck", *args)
    run.assert_outcomes(passed=1)
    modules = [json.loads(path.read_text()) for path in project.path.glob("*.loaded")]
    return [[name for name in HEAVY if name in found] for found in modules]


@pytest.mark.parametrize("way", [(), ("-p", "xdist", "-n", "1")], ids=["no xdist", "n1"])
@pytest.mark.parametrize("argument", ["", "gradcheck"], ids=["no fixture", "unused fixture"])
def test_a_run_without_a_check_loads_no_framework(project, way, argument):
    processes = 2 if way else 1
    test = f"def test_light({argument}):\n    pass"
    flags = ("--gradcheck-tolerance=1e-3", "--gradcheck-report=json:report.json")
    assert loaded(project, test, *way, *flags) == [[]] * processes


def test_the_spy_sees_what_a_check_loads(project):
    (found,) = loaded(
        project,
        """
        from sample import X, right, square

        def test_light(gradcheck):
            gradcheck(square, X, grad=right)
        """,
    )
    assert set(found) == {"numpy", "pytest_gradcheck.checks", "pytest_gradcheck.numerics"}
