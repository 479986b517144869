"""Losses that carry a state of their own: a counter, a queue, a memory."""

from types import SimpleNamespace

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step


class Numbers:
    """A loss that is an object, by NumPy; what it carries along it binds anew."""

    def __init__(self, kind):
        self.kind, self.calls, self.queue, self.last = kind, 0, np.full(5, 0.3), None
        self.noise = np.random.RandomState(0)

    def factor(self):
        self.calls += self.kind == "counter"
        return 1 + 0.1 * self.calls

    def pushed(self, params):
        old = self.queue
        if self.kind == "queue":
            self.queue = 0.5 * old + 0.5 * params
        if self.kind == "queue written":
            old = old.copy()
            self.queue[:] = 0.5 * old + 0.5 * params
        if self.kind == "legacy noise":
            return old + self.noise.normal(size=5)
        return old

    def loss(self, params, batch):
        self.last = params  # for a log
        x, y = batch
        return self.factor() * ((x @ params - y) ** 2).mean() + self.pushed(params) @ params

    def grad(self, params, batch):
        x, y = batch
        return self.factor() * 2 * x.T @ (x @ params - y) / len(y) + self.pushed(params)


def numbers(kind, factor=1.0):
    def build():
        rng, own = np.random.default_rng(0), Numbers(kind)

        def step(params, state, batch):
            return params - 0.05 * factor * own.grad(params, batch), state

        batches = [(rng.normal(size=(8, 5)), rng.normal(size=8)) for _ in range(7)]
        start = rng.normal(size=5)
        return Training(step=step, loss=own.loss, grad=own.grad, batches=batches, params=start)

    return build


@pytest.mark.parametrize("kind", ["counter", "queue", "queue written", "legacy noise", "log"])
def test_numpy(kind):
    right = check_step(numbers(kind), optimizer="sgd", lr=0.05)
    assert (right.verdict, right.headline) == ("pass", "step: gradients and updates are right")
    assert check_step(numbers(kind, 2.0), optimizer="sgd", lr=0.05).verdict == "fail"


def tensors(kind, size, factor=1.0):
    torch = pytest.importorskip("torch")
    nn, F = torch.nn, torch.nn.functional

    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 3))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        own = SimpleNamespace(calls=0, queue=torch.randn(16, 3), seen=[])

        def loss(batch):
            out = model(batch[0])
            value = F.cross_entropy(out, batch[1])
            if kind == "counter":
                own.calls += 1
                return value * (1 + 0.1 * own.calls)
            if kind == "queue":
                value = value + 0.1 * (out @ own.queue.T).logsumexp(1).mean()
                own.queue = torch.cat([own.queue, out.detach()])[-16:]
                return value
            if kind == "attribute of a function":
                loss.calls = getattr(loss, "calls", 0) + 1
                return value * (1 + 0.1 * loss.calls)
            own.first = getattr(own, "first", value.detach())
            own.seen.append(value.detach())
            return value / own.first

        def step(batch):
            optimizer.zero_grad()
            (factor * loss(batch)).backward()
            optimizer.step()

        batches = [(torch.randn(16, size), torch.randint(0, 3, (16,))) for _ in range(7)]
        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return build


@pytest.mark.parametrize("size", [4, 320])
@pytest.mark.parametrize("kind", ["counter", "queue", "attribute of a function", "the first"])
def test_torch(kind, size):
    right = check_step(tensors(kind, size))
    assert (right.verdict, right.headline) == ("pass", right.headline)
    wrong = check_step(tensors(kind, size, 2.0))
    assert wrong.headline.startswith("wrong step: the optimizer received 2 times the right")
