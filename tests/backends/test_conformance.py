"""The three backends pass the kit that third parties run, and a broken one does not."""

import dataclasses

import numpy as np
import pytest

from pytest_gradcheck import backends
from pytest_gradcheck.testing import LAWS, BackendCase, check_backend

torch = pytest.importorskip("torch")
jnp = pytest.importorskip("jax.numpy")

CASES = {
    "numpy": BackendCase(backends.load("numpy"), np.array, differentiates=False),
    "torch": BackendCase(
        backends.load("torch"), torch.tensor, dtypes=("float16", "bfloat16", "float32", "float64")
    ),
    "jax": BackendCase(
        backends.load("jax"), jnp.array, dtypes=("float16", "bfloat16", "float32", "float64")
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_builtin_backends_conform(name, law):
    check_backend(CASES[name], law)


class Broken:
    """The NumPy backend with one method replaced."""

    name = "broken"

    def __init__(self, **replaced):
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(backends.load("numpy"), name)


def global_normal(like, seed):
    np.random.seed(seed)
    return np.random.standard_normal(np.shape(like))


@pytest.mark.parametrize(
    ("law", "replaced", "message"),
    [
        ("inner-is-bilinear", {"inner": lambda a, b: float(np.abs(a * b).sum())}, "inner"),
        ("normal-is-private-and-repeatable", {"normal": global_normal}, "generator moved"),
        ("convert-copies", {"convert": lambda x, dtype="", device="": x}, "convert"),
        (
            "evaluate-gives-values",
            {"evaluate": lambda f, x: backends.load("numpy").evaluate(f, [2 * p for p in x])},
            "f: ",
        ),
        ("guard-restores", {"guard": lambda *roots: dataclass_guard()}, "not restored"),
    ],
)
def test_the_kit_sees_a_broken_backend(law, replaced, message):
    case = BackendCase(Broken(**replaced), np.array, differentiates=False)
    with pytest.raises(AssertionError, match=message):
        check_backend(case, law)


@dataclasses.dataclass
class dataclass_guard:  # noqa: N801  # stands in for a context manager function
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def rewind(self):
        return None


def test_registered_backends_come_first_and_go_again():
    entry = backends.Entry("mine", frozenset({"numpy"}), "pytest_gradcheck.backends.numpy:BACKEND")
    backends.register([entry])
    try:
        assert backends.owner(np.ones(2)) == "mine"
        assert backends.names()[0] == "mine"
    finally:
        backends.unregister([entry])
    assert backends.owner(np.ones(2)) == "numpy"
    assert "mine" not in backends.names()
