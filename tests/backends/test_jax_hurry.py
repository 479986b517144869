"""Programs compiled in a hurry: the same numbers, and what cannot be hurried is left to jit."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
programs = pytest.importorskip("pytest_gradcheck.backends.jax_hurry")


def loss(params, batch):
    return jax.numpy.mean((jax.numpy.tanh(batch @ params["w"]) - params["b"]) ** 2)


def arguments(n=4):
    rng = np.random.default_rng(0)
    return {"w": np.float32(rng.normal(size=(n, 3))), "b": np.ones(3, np.float32)}, np.float32(
        rng.normal(size=(5, n))
    )


def options(monkeypatch):
    """The options of each program that is compiled."""
    seen = []
    jit = jax.jit

    def noting(function, compiler_options=None, **others):
        def run(*args):
            seen.append(compiler_options)
            return jit(function, compiler_options=compiler_options, **others)(*args)

        return run

    monkeypatch.setattr(jax, "jit", noting)
    return seen


def test_a_hurried_gradient_is_the_same_gradient():
    gradient = programs.compiled(jax.value_and_grad(loss))
    value, grads = gradient(*arguments())
    wanted, right = jax.value_and_grad(loss)(*arguments())
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(grads["w"], right["w"], rtol=1e-5, atol=1e-7)


def test_what_is_large_is_compiled_well(monkeypatch):
    assert programs.can_hurry() == (jax.default_backend() == "cpu")
    seen = options(monkeypatch)
    monkeypatch.setattr(programs, "MOST", 50)
    gradient = programs.compiled(jax.grad(loss))
    gradient(*arguments(2)), gradient(*arguments(40))
    assert seen == [programs.HURRIED if programs.can_hurry() else None, None]


@pytest.mark.parametrize("lacks", ["option", "argument"])
def test_a_release_that_cannot_hurry(monkeypatch, lacks):
    jit = jax.jit
    if lacks == "option":
        monkeypatch.setattr(programs, "HURRIED", {"xla_no_such_option": 1})
    else:
        monkeypatch.setattr(jax, "jit", lambda function: jit(function))
    programs.can_hurry.cache_clear()
    try:
        assert not programs.can_hurry()
        assert np.isfinite(programs.compiled(loss)(*arguments()))
    finally:
        programs.can_hurry.cache_clear()
