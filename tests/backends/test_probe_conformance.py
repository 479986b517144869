"""The three built-in probes pass the kit that third parties run, and a broken one does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradcheck.backends.flow import probe_of
from pytest_gradcheck.testing_flow import PROBE_LAWS, ProbeCase, check_probe


def of_torch(draw, batch, is_mixed):
    class Net(nn.Module):
        def __init__(self, seed):
            super().__init__()
            weights = draw(seed)
            self.one, self.two = nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)
            with torch.no_grad():
                self.one.weight.copy_(torch.tensor(weights["one"].T))
                self.two.weight.copy_(torch.tensor(weights["two"].T))

        def forward(self, x):
            h = self.one(x)
            return self.two(torch.relu(h - h.mean(0) if is_mixed else h))

    loss = lambda model, b: (model(b[0]) - b[1]).square().mean()  # noqa: E731  # of the kit
    return probe_of("torch")(None, loss, tuple(map(torch.tensor, batch)), make=lambda s: Net(s))


def of_jax(draw, batch, is_mixed):
    def loss(p, b):
        h = b[0] @ p["one"]
        h = jax.nn.relu(h - h.mean(0) if is_mixed else h)
        return jnp.mean((h @ p["two"] - b[1]) ** 2)

    make = lambda seed: jax.tree.map(jnp.asarray, draw(seed))  # noqa: E731  # of the kit
    return probe_of("jax")(None, loss, batch, make=make)


def of_numpy(draw, batch, is_mixed, wrong=1.0):
    def loss(p, b):
        x, y = b
        z = x @ p["one"]
        z = z - z.mean(0) if is_mixed else z
        h = np.maximum(z, 0)
        out = h @ p["two"]
        g = wrong * 2 * (out - y) / len(y)
        g_h = g @ p["two"].T
        g_z = g_h * (z > 0)
        layers = [("one", z, g_z), ("one.relu", h, g_h), ("two", out, g)]
        return np.mean((out - y) ** 2), layers, {"one": x.T @ g_z, "two": h.T @ g}

    return probe_of("numpy")(None, loss, batch, make=draw)


CASES = {"torch": of_torch, "jax": of_jax, "numpy": of_numpy}


@pytest.mark.parametrize("law", PROBE_LAWS)
@pytest.mark.parametrize("name", CASES)
def test_builtin_probes_conform(name, law):
    check_probe(ProbeCase(CASES[name]), law)


def test_the_compiled_form_conforms_too(monkeypatch):
    monkeypatch.setattr("pytest_gradcheck.backends.jax_tape.WORK", -1.0)
    for law in PROBE_LAWS:
        check_probe(ProbeCase(of_jax), law)


class Broken:
    """A probe with one method replaced."""

    def __init__(self, probe, **replaced):
        self._probe = probe
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._probe, name)


BROKEN = {
    "sizes-are-those-by-hand": (lambda *a: of_numpy(*a, wrong=2.0), "gradient of"),
    "gradients-scale-with-the-loss": (
        lambda *a: Broken(p := of_jax(*a), measure=lambda s, c=None, f=1.0: p.measure(s)),
        "8 times the loss",
    ),
    "draws-differ": (
        lambda *a: Broken(p := of_jax(*a), draw=lambda seed: p.draw(0)),
        "another seed gives the same",
    ),
    "a-step-takes-a-tenth-away": (
        lambda *a: Broken(of_jax(*a), stepped=lambda state: state),
        "not a tenth",
    ),
    "samples-are-told-from-one-another": (
        lambda *a: Broken(of_jax(*a), strangers=lambda state: 0.5),
        "with mixed=False",
    ),
    "wider-is-wider": (
        lambda *a: Broken(p := of_jax(*a), widened=lambda factor: p),
        "not 12 and 1",
    ),
    "a-constant-costs-the-variance": (
        lambda draw, batch, mixed: of_jax(draw, (batch[0], 2 * batch[1]), mixed),
        "constant: loss",
    ),
}


@pytest.mark.parametrize("law", PROBE_LAWS)
def test_the_kit_sees_a_broken_probe(law):
    made, message = BROKEN[law]
    with pytest.raises(AssertionError, match=message):
        check_probe(ProbeCase(made), law)
