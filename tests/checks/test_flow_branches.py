"""Branches: layers are compared along the graph, and each branch by itself."""

import itertools

import pytest
import torch
from torch import nn

from pytest_gradcheck import check_flow

G = torch.Generator().manual_seed(0)
X, Z = torch.randn(64, 8, generator=G), torch.randn(64, 8, generator=G)
Y = torch.randint(0, 4, (64,), generator=G)
V = torch.randn(64, 1, generator=G)


def layer(a, b, gain=1.0):
    made = nn.Linear(a, b)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    nn.init.zeros_(made.bias)
    with torch.no_grad():
        made.weight.mul_(gain)
    return made


def body(depth, act=nn.ReLU, first=8, width=32, gain=1.0):
    sizes = [first, *[width] * depth]
    parts = []
    for a, b in itertools.pairwise(sizes):
        parts += [layer(a, b, gain), act()]
    return nn.Sequential(*parts)


def codes(result, *severities):
    wanted = severities or ("fail", "warn")
    return [f.code.removeprefix("flow-") for f in result.findings if f.severity in wanted]


class Nets(nn.Module):
    """Networks in one module; the loss puts them together."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def check(make, loss, seed=0):
    return check_flow(None, loss, (X, Y, V, Z), make=make, seed=seed)


def classified(scores, y):
    return nn.functional.cross_entropy(scores, y)


def aux(after=nn.ReLU, depth=4):
    return lambda: Nets(
        low=body(4), high=body(depth, after, 32), main=layer(32, 4), side=layer(32, 4)
    )


def aux_loss(main, side, is_early):
    def loss(m, b):
        h = m.low(b[0])
        early = classified(m.side(h), b[1]) if is_early else 0
        top = classified(m.main(m.high(h)), b[1])
        return main * top + side * (early if is_early else classified(m.side(h), b[1]))

    return loss


@pytest.mark.parametrize("weights", [(1.0, 1e-4), (1e-4, 1.0), (1.0, 1.0), (1e3, 1.0)])
@pytest.mark.parametrize("is_early", [True, False])
def test_an_auxiliary_head_may_weigh_what_it_likes(weights, is_early):
    result = check(aux(), aux_loss(*weights, is_early))
    assert (result.verdict, codes(result)) == ("pass", []), result.headline


@pytest.mark.parametrize("weights", [(1.0, 1e-4), (1e-4, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("is_early", [True, False])
def test_what_vanishes_behind_an_auxiliary_head_is_found(weights, is_early):
    result = check(aux(nn.Sigmoid, 9), aux_loss(*weights, is_early))
    assert codes(result, "fail")[:1] == ["vanishing"]
    assert result.findings[0].where.startswith("high")


def two(one, other, weight):
    def make():
        return Nets(
            a=nn.Sequential(*body(*one), layer(32, 4)),
            b=nn.Sequential(*body(*other), layer(32, 1)),
        )

    def loss(m, b):
        return classified(m.a(b[0]), b[1]) + weight * (m.b(b[3]) - b[2]).square().mean()

    return make, loss


@pytest.mark.parametrize("weight", [1e-5, 1e-2, 1.0, 1e4])
def test_two_networks_in_one_module_are_judged_by_themselves(weight):
    result = check(*two((5,), (3,), weight))
    assert (result.verdict, codes(result, "fail")) == ("pass", []), result.headline


@pytest.mark.parametrize("weight", [1e-5, 1.0, 1e4])
@pytest.mark.parametrize("spot", ["a", "b"])
def test_the_ill_one_of_two_networks_is_named(spot, weight):
    ill, well = (10, nn.Sigmoid), (4,)
    result = check(*two(*((ill, well) if spot == "a" else (well, ill)), weight))
    assert codes(result, "fail")[:1] == ["vanishing"]
    assert result.findings[0].where.startswith(spot)
    assert "cause-activation" in codes(result, "note")


@pytest.mark.parametrize("weight", [1e-5, 1.0])
def test_the_exploding_one_of_two_networks_is_named(weight):
    result = check(*two((4,), (20, nn.Tanh, 8, 32, 5.0), weight))
    assert codes(result, "fail")[:1] == ["exploding"]
    assert result.findings[0].where.startswith("b")


def towers(act, weight):
    def make():
        return Nets(left=body(6), right=body(9, act), head=layer(64, 4))

    def loss(m, b):
        h = torch.cat([m.left(b[0]), weight * m.right(b[3])], 1)
        return classified(m.head(h), b[1])

    return make, loss


@pytest.mark.parametrize("weight", [1.0, 1e-4])
def test_each_of_two_towers_is_judged(weight):
    assert check(*towers(nn.ReLU, weight)).verdict == "pass"
    result = check(*towers(nn.Sigmoid, weight))
    assert codes(result, "fail")[:1] == ["vanishing"]
    assert result.findings[0].where.startswith("right")


class ActorCritic(nn.Module):
    """A shared body and two heads, that of the policy small, as in PPO."""

    def __init__(self, shared):
        super().__init__()
        self.pi = nn.Sequential(*body(2, nn.Tanh), layer(32, 4, 0.01))
        self.v = nn.Sequential(*body(2, nn.Tanh), layer(32, 1))
        if shared:
            self.v[0], self.v[2] = self.pi[0], self.pi[2]

    def forward(self, x):
        return self.pi(x), self.v(x)


def ppo(m, b):
    scores, value = m(b[0])
    log = scores.log_softmax(-1)
    ratio = (log - log.detach()).gather(1, b[1][:, None]).exp()
    gain = b[2]
    clipped = torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
    entropy = -(log.exp() * log).sum(-1).mean()
    return -clipped + 0.5 * (value - 30 * gain).square().mean() - 0.01 * entropy


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_actor_and_critic_pass(shared, seed):
    result = check(lambda: ActorCritic(shared), ppo, seed)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("weight", [1e-4, 1.0])
def test_a_gan_with_both_losses_passes(weight):
    def make():
        return Nets(
            g=nn.Sequential(*body(3), layer(32, 8)),
            d=nn.Sequential(*body(3, nn.LeakyReLU), layer(32, 1)),
        )

    def loss(m, b):
        soft, fake = nn.functional.softplus, m.g(b[3])
        judge = soft(-m.d(b[0])).mean() + soft(m.d(fake.detach())).mean()
        return judge + weight * soft(-m.d(fake)).mean()

    assert check(make, loss).verdict == "pass"


class Dense(nn.Module):
    """Every layer sees all layers before."""

    def __init__(self, depth, act):
        super().__init__()
        self.act = act
        self.parts = nn.ModuleList(layer(8 + 16 * k, 16) for k in range(depth))
        self.head = layer(8 + 16 * depth, 4)

    def forward(self, x):
        for part in self.parts:
            x = torch.cat([x, self.act(part(x))], 1)
        return self.head(x)


@pytest.mark.parametrize("act", [torch.relu, torch.tanh, torch.sigmoid])
def test_densely_connected_layers_pass(act):
    result = check(lambda: Dense(12, act), lambda m, b: classified(m(b[0]), b[1]))
    assert result.verdict == "pass", result.headline


class Padded(nn.Module):
    """A causal transformer of sentences that are padded on the left, without positions."""

    def __init__(self, is_first, padding):
        super().__init__()
        self.embed = nn.Embedding(50, 32, padding_idx=padding)
        block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=is_first)
        self.body = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, 50)

    def forward(self, x):
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), -torch.inf), 1)
        return self.head(self.body(self.embed(x), mask=mask))


@pytest.mark.parametrize("padding", [0, None])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_part_in_no_flow(is_first, padding, side):
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(1, 50, (32, 16), generator=generator)
    count = torch.randint(0, 10, (32, 1), generator=generator)
    place = torch.arange(16) if side == "left" else torch.arange(15, -1, -1)
    words[place < count] = 0
    targets = torch.where(words == 0, -100, words.roll(-1, 1))

    def loss(m, b):
        return nn.functional.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten())

    result = check_flow(
        None, loss, (words, targets), make=lambda: Padded(is_first, padding), seed=1
    )
    assert (result.verdict, codes(result)) == ("pass", []), result.headline


class Squeezed(nn.Module):
    """A network with a gate of four units (Hu et al. 2018)."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.down, self.up, self.head = nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 10)
        nn.init.constant_(self.down.bias, bias)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


IMAGES = (torch.randn(32, 3, 8, 8, generator=G), torch.randint(0, 10, (32,), generator=G))


def see(make, seed=0):
    return check_flow(None, lambda m, b: classified(m(b[0]), b[1]), IMAGES, make=make, seed=seed)


@pytest.mark.parametrize("seed", range(6))
def test_a_gate_that_may_start_dead_is_no_dead_network(seed):
    result = see(Squeezed, 100 * seed)
    assert result.verdict == "pass", result.headline


def test_a_gate_that_always_starts_dead_is_a_dead_layer_and_no_dead_network():
    result = see(lambda: Squeezed(-10.0))
    assert codes(result, "fail") == ["dead"]
    assert result.findings[0].where == "down.relu"
    assert "100% of the units" in result.findings[0].message
    assert "the network is dead" not in result.findings[0].message
