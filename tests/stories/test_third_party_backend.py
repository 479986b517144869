"""A backend for somebody else's arrays: offered by a hook, found by type, used end to end."""

import pytest

import pytest_gradcheck.backends

TINY = '''
"""An array type of its own, and the backend that lets its derivatives be checked."""

from contextlib import nullcontext

import numpy as np

from pytest_gradcheck import UsageError
from pytest_gradcheck.backends import Flat, Leaf


class Tiny:
    def __init__(self, values):
        self.values = np.array(values, dtype=float)

    @property
    def shape(self):
        return self.values.shape

    def __add__(self, other):
        return Tiny(self.values + _raw(other))

    def __sub__(self, other):
        return Tiny(self.values - _raw(other))

    def __mul__(self, other):
        return Tiny(self.values * _raw(other))

    def __abs__(self):
        return Tiny(abs(self.values))


def _raw(value):
    return value.values if isinstance(value, Tiny) else value


class _NoState:
    is_random = False

    def rewind(self):
        pass


class TinyBackend:
    name = "tiny"

    def flatten(self, tree):
        is_array = isinstance(tree, Tiny)
        leaf = Leaf("", tree, "float64", tree.shape, "cpu") if is_array else Leaf("", tree)
        return Flat((leaf,), lambda values: values[0])

    def evaluate(self, f, point):
        return self.flatten(f(point))

    forward = evaluate

    def vjp(self, f, point, cotangents):
        raise UsageError("tiny has no derivatives of its own; give grad=")

    jvp = vjp

    def normal(self, like, seed):
        return Tiny(np.random.default_rng(seed).standard_normal(like.shape))

    def mode(self, point):
        return nullcontext()

    def uncast(self, f):
        return None

    def lowered(self, f, point):
        return ()

    def moved(self, x, v, step):
        return x + v * step

    def inner(self, a, b):
        return float(np.vdot(a.values, b.values))

    def convert(self, x, dtype="", device=""):
        return Tiny(_raw(x))

    def vjps(self, f, point, stacks):
        raise UsageError("tiny has no derivatives of its own; give grad=")

    vjps_each = vjps

    def gradient(self, f, count):
        raise UsageError("tiny has no derivatives of its own; give grad=")

    def variants(self, f, point, cotangents):
        return ()

    def to_numpy(self, x):
        return np.asarray(x.values)

    def guard(self, *roots):
        return nullcontext(_NoState())


BACKEND = TinyBackend()
'''

HOOK = """
from pytest_gradcheck.backends import Entry

def pytest_gradcheck_backends():
    return [Entry("tiny", frozenset({"tiny"}), "tiny:BACKEND")]
"""

TESTS = """
from pytest_gradcheck.backends import Backend
from tiny import BACKEND, Tiny

def energy(x):
    return Tiny((x.values**2).sum())

def test_has_every_method():
    assert isinstance(BACKEND, Backend)

def test_right(gradcheck):
    gradcheck(energy, Tiny(X), grad=lambda x: x * 2.0)

def test_half(gradcheck):
    gradcheck(energy, Tiny(X), grad=lambda x: x)

def test_named(gradcheck):
    gradcheck(energy, Tiny(X), grad=lambda x: x * 2.0, backend="tiny")

def test_underived(gradcheck):
    gradcheck(energy, Tiny(X))
"""


@pytest.fixture
def tiny(project):
    project.file("tiny.py", TINY)
    project.file("conftest.py", HOOK)
    project.tests(TESTS)
    return project


def test_an_offered_backend_is_found_and_judged(tiny, way):
    run = tiny.run(*way)
    run.assert_outcomes(passed=3, failed=2)
    verdicts = {"test_right": ["pass"], "test_half": ["fail"], "test_named": ["pass"]}
    assert tiny.verdicts() == verdicts
    assert {result["context"]["backend"] for result in tiny.results()} == {"tiny"}
    told = [line.removeprefix("E").strip() for line in run.stdout.lines]
    wrong = "wrong gradient of energy: x gets 0.5 times the right one"
    assert f"pytest_gradcheck.GradCheckError: {wrong}" in told
    misuse = "tiny has no derivatives of its own; give grad="
    assert f"pytest_gradcheck.UsageError: {misuse}" in told


def test_an_offered_backend_is_gone_after_the_run(tiny):
    before = pytest_gradcheck.backends.names()
    tiny.run().assert_outcomes(passed=3, failed=2)
    assert pytest_gradcheck.backends.names() == before


def test_an_unknown_name_lists_the_offered_backend(tiny):
    tiny.tests("def test_unknown(gradcheck):\n    gradcheck(square, X, grad=right, backend='tony')")
    run = tiny.run()
    run.stdout.fnmatch_lines(
        ["E *.UsageError: backend='tony' is not known; known: tiny, torch, jax, numpy"]
    )


def test_without_the_offer_the_arrays_are_not_known(tiny):
    tiny.file("conftest.py", "")
    run = tiny.run("-k", "right")
    run.assert_outcomes(failed=1, deselected=4)
    run.stdout.fnmatch_lines(
        ["E *.UsageError: nothing differentiable among the inputs of energy: got x (Tiny); *"]
    )
