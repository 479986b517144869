"""Recurrences that a loss reads at some of their steps, in either direction."""

import threading

import jax
import jax.numpy as jnp
import pytest
import torch
from recurrences import drawn
from torch import nn
from torch.nn import functional

from pytest_gradcheck import check_flow

G = torch.Generator().manual_seed(0)
STEPS = torch.randn(32, 20, 8, generator=G)
LABELS = torch.randint(0, 5, (32,), generator=G)
TAGS = torch.randint(0, 5, (32, 20), generator=G)
LENGTHS = torch.randint(4, 8, (32,), generator=G)
KEEP = (torch.arange(20)[None] < LENGTHS[:, None]).float()
PADDED = STEPS * KEEP[..., None]
MASKED = TAGS.masked_fill(KEEP == 0, -100)


class Tagger(nn.Module):
    """Tells a label at each step."""

    def __init__(self, kind=nn.LSTM, both=True, gain=1.0):
        super().__init__()
        self.body = kind(8, 32, batch_first=True, bidirectional=both)
        self.head = nn.Linear(64 if both else 32, 5)
        with torch.no_grad():
            for name, p in self.body.named_parameters():
                if "weight_hh" in name:
                    p.mul_(gain)

    def forward(self, x):
        return self.head(self.body(x)[0])


class Backward(Tagger):
    """Reads the backward direction where it ends, and the forward one a little."""

    def __init__(self, little):
        super().__init__()
        self.little = little

    def forward(self, x):
        h = self.body(x)[0]
        ends = [self.little * h[:, -1, :32], h[:, 0, 32:]]
        return self.head(torch.cat(ends, 1))


class Forward(Tagger):
    """Reads the forward direction where it ends."""

    def forward(self, x):
        return self.head(functional.pad(self.body(x)[0][:, -1, :32], (0, 32)))


def masked(model, batch):
    x, tags = batch
    return functional.cross_entropy(model(x).flatten(0, 1), tags.flatten(), ignore_index=-100)


def discounted(model, batch):
    x, tags = batch
    each = functional.cross_entropy(model(x).flatten(0, 1), tags.flatten(), reduction="none")
    return (each.view(tags.shape) * 0.7 ** torch.arange(20)).mean()


def at_first_steps(model, batch):
    x, tags = batch
    return functional.cross_entropy(model(x)[:, :6].flatten(0, 1), tags[:, :6].flatten())


def of_sample(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def check(make, loss, batch):
    return check_flow(None, loss, batch, make=make, seed=0)


def codes(result):
    return [f.code for f in result.findings]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("loss", [masked, discounted, at_first_steps])
@pytest.mark.parametrize("both", [True, False])
def test_a_loss_that_is_felt_at_the_first_steps_is_no_growth(kind, loss, both):
    batch = (PADDED, MASKED) if loss is masked else (STEPS, TAGS)
    assert "flow-time-growing" not in codes(check(lambda: Tagger(kind, both), loss, batch))


@pytest.mark.parametrize("little", [1e-3, 1.0])
def test_a_backward_direction_read_at_its_end_is_no_growth(little):
    result = check(lambda: Backward(little), of_sample, (STEPS, LABELS))
    assert (result.verdict, "flow-time-growing" in codes(result)) == ("pass", False)


def test_a_direction_that_is_never_read_is_said_to_have_no_gradient():
    result = check(lambda: Backward(0.0), of_sample, (STEPS, LABELS))
    assert "flow-zero" in codes(result)
    assert "flow-time-growing" not in codes(result)


@pytest.mark.parametrize("loss", [masked, discounted, at_first_steps])
@pytest.mark.parametrize("kind", [nn.RNN])
def test_a_layer_that_does_grow_is_found_whatever_the_loss_reads(kind, loss):
    batch = (STEPS, MASKED) if loss is masked else (STEPS, TAGS)
    relu = lambda *args, **kw: kind(*args, nonlinearity="relu", **kw)  # noqa: E731
    result = check(lambda: Tagger(relu, False, 20.0), loss, batch)
    assert "flow-time-growing" in codes(result)


def test_one_direction_of_two_that_grows_is_found():
    relu = lambda *args, **kw: nn.RNN(*args, nonlinearity="relu", **kw)  # noqa: E731
    result = check(lambda: Forward(relu, True, 6.0), of_sample, (STEPS, LABELS))
    assert "flow-time-growing" in codes(result)


def scanned(is_reverse, slope):
    def loss(p, batch):
        def step(h, u):
            return slope(h @ p["h"] + u @ p["x"]), None

        steps = batch[0].swapaxes(0, 1)
        h, _ = jax.lax.scan(
            step, jnp.zeros((32, 32)), steps if is_reverse else steps[::-1], reverse=is_reverse
        )
        return -jnp.mean(jax.nn.log_softmax(h @ p["o"])[jnp.arange(32), batch[1]])

    return loss


@pytest.mark.parametrize("is_reverse", [False, True])
def test_a_scan_is_read_in_the_order_in_which_it_runs(is_reverse):
    batch = jnp.asarray(STEPS.numpy()), jnp.asarray(LABELS.numpy())
    results = {
        gain: check_flow(None, scanned(is_reverse, slope), batch, make=drawn(gain), seed=0)
        for gain, slope in ((1.0, jnp.tanh), (2.0, jax.nn.relu))
    }
    assert results[1.0].verdict == "pass"
    assert "flow-time-growing" in codes(results[2.0])


def test_stacked_layers_of_a_reverse_scan_stand_in_the_order_in_which_they_run():
    def make(seed):
        w = jax.random.normal(jax.random.key(seed), (6, 16, 16)) / 4
        return {"w": w.at[0].multiply(1e-3)}  # the layer that runs last

    def loss(p, x):
        step = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        return jnp.mean(jax.lax.scan(step, x, p["w"], reverse=True)[0] ** 2)

    x = jax.random.normal(jax.random.key(1), (32, 16))
    rows = check_flow(None, loss, x, make=make, seed=0).table("layers").rows
    names = [row[0] for row in rows if row[0].startswith("w[")]
    assert names == [f"w[{n}]" for n in (5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize("loss", ["at the ends", "at each step"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "gain"), [(nn.RNN, 4.0), (nn.LSTM, 12.0), (nn.GRU, 12.0)])
def test_two_directions_that_both_grow_do_not_hide_each_other(kind, gain, layers, loss):
    class Reader(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.body = kind(8, 32, layers, bidirectional=True, dropout=0.1 * (layers - 1))
            self.head = nn.Linear(64, 5)
            with torch.no_grad():
                for name, p in self.body.named_parameters():
                    if "weight_hh" in name:
                        for part in p.split(32):
                            nn.init.orthogonal_(part).mul_(factor)

        def forward(self, x):
            h = self.body(x.transpose(0, 1))[0].transpose(0, 1)
            if loss == "at each step":
                return self.head(h)
            return self.head(torch.cat([h[:, -1, :32], h[:, 0, 32:]], 1))

    tell = at_each_step if loss == "at each step" else of_sample
    labels = TAGS if loss == "at each step" else LABELS
    state = torch.get_rng_state()
    for factor, is_told in ((1.0, False), (gain, True)):
        result = check(lambda f=factor: Reader(f), tell, (STEPS, labels))
        assert ("flow-time-growing" in codes(result)) is is_told
    assert torch.equal(state, torch.get_rng_state())


def at_each_step(model, batch):
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def test_two_directions_that_fade_are_noted_as_one_is():
    class Ends(Tagger):
        def forward(self, x):
            _, (states, _) = self.body(x, (torch.zeros(2, 32, 32), torch.zeros(2, 32, 32)))
            return self.head(torch.cat([*states], 1))

    result = check(lambda: Ends(nn.LSTM, True, 0.1), of_sample, (STEPS, LABELS))
    assert (result.verdict, codes(result)) == ("pass", ["flow-time-fading"])


def test_a_layer_of_two_directions_that_has_no_copies_is_read_as_it_is():
    class Kept(Tagger):
        def __init__(self):
            super().__init__(nn.RNN, True, 8.0)
            self.body.lock = threading.Lock()

    assert check_flow(Kept(), at_each_step, (STEPS, TAGS)).check == "flow"


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("reads", ["states", "each step"])
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_packed_samples_are_read_as_padded_ones(gain, reads, is_sorted):
    lengths = torch.randint(12, 21, (32,), generator=torch.Generator().manual_seed(1))
    lengths = lengths.sort(descending=True)[0] if is_sorted else lengths

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.RNN(8, 32, batch_first=True, nonlinearity="relu")
            self.head = nn.Linear(32, 5)
            nn.init.orthogonal_(self.body.weight_hh_l0, gain)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=is_sorted
            )
            told, states = self.body(packed)
            if reads == "states":
                return self.head(states[-1])
            padded, _ = nn.utils.rnn.pad_packed_sequence(told, batch_first=True, total_length=20)
            return self.head(padded.sum(1) / lengths[:, None])

    result = check(Packed, of_sample, (STEPS, LABELS))
    assert ("flow-time-growing" in codes(result)) is (gain > 2)
    assert (result.verdict == "fail") is (gain > 2)
