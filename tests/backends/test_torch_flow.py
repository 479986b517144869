"""What a pass of a PyTorch model shows: sizes as by hand, and models that hooks could break."""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_gradcheck.backends import torch_flow
from pytest_gradcheck.backends.torch_probe import TorchProbe

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(1))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def seen(model, batch=(X, Y), change=None, last=-1):
    with torch.random.fork_rng():
        return torch_flow.measure(model, loss, batch, change, last=last)[0]


def layer(one, name):
    return next(y for y in one.layers if y.name == name)


def rms(x):
    return float(x.detach().double().square().mean().sqrt())


def test_sizes_are_those_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    h = model[0](X)
    a = torch.relu(h)
    out = model[2](a)
    value = nn.functional.cross_entropy(out, Y)
    wanted = torch.autograd.grad(value, [h, a, out, model[0].weight])
    one = seen(model)
    for name, value, g in zip("012", (h, a, out), wanted, strict=False):
        assert layer(one, name).activation == pytest.approx(rms(value))
        assert layer(one, name).gradient == pytest.approx(rms(g))
    weight = next(p for p in one.parameters if p.name == "0.weight")
    assert weight.gradient == pytest.approx(rms(wanted[3]))
    assert layer(one, "1").dead == pytest.approx(float((a == 0).all(0).double().mean()))
    assert one.source == pytest.approx(rms(X))
    assert [y.kind for y in one.layers] == ["linear", "activation", "linear"]


def test_tiny_gradients_do_not_underflow():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    one, _ = torch_flow.measure(model, loss, (X, Y), None, 1e-30)
    assert 0 < layer(one, "0").gradient < 1e-30


def test_functions_inside_forward_are_layers_by_what_feeds_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
            self.w = nn.Parameter(torch.eye(8))

        def forward(self, x):
            h = torch.tanh(self.a(x)) @ self.w
            return self.b(nn.functional.relu(h).sigmoid())

    names = [y.name for y in seen(Net()).layers]
    assert names == ["a", "a.tanh", "matmul", "matmul.relu", "matmul.relu.sigmoid", "b"]


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(inplace=True)
        self.c = nn.Linear(8, 3)

    def forward(self, x):
        h = self.act(self.a(x))
        out = self.b(h)
        out += h
        return self.c(nn.functional.relu(out, inplace=True))


def test_activations_in_place_work_and_are_layers_of_their_own():
    torch.manual_seed(0)
    model = InPlace()
    value = loss(model, (X, Y))
    gradients = torch.autograd.grad(value, list(model.parameters()))
    one, told = torch_flow.measure(model, loss, (X, Y))
    assert one.loss == float(value.detach())
    for mine, theirs in zip(gradients, told.values(), strict=True):
        assert torch.equal(mine, theirs)
    assert {"a", "act", "b", "c"} <= {y.name for y in one.layers}
    assert layer(one, "a").activation > layer(one, "act").activation
    assert not any(math.isnan(y.gradient) for y in one.layers)


def test_a_shared_layer_is_told_by_call():
    shared = nn.Linear(8, 8)
    names = [y.name for y in seen(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(8, 3))).layers]
    assert names == ["0", "1", "0#2", "3"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_model_is_seen_once(reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
            self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(checkpoint(self.body, self.first(x), use_reentrant=reentrant))

    one = seen(Net())
    assert [y.name for y in one.layers].count("body.0") == 1
    assert not any(math.isnan(p.gradient) for p in one.parameters)
    if not reentrant:  # the first forward of the other kind records no graph
        assert layer(one, "body.0").gradient > 0


@pytest.mark.filterwarnings("ignore")  # the compiler's own, at tensors that it makes
def test_a_compiled_model_is_seen_at_its_boundary():
    body = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), backend="eager")
    model = nn.Sequential(nn.Linear(8, 8), body, nn.Linear(8, 3))
    one = seen(model)
    assert [y.name for y in one.layers] == ["0", "1", "2"]
    assert not any(math.isnan(y.gradient) for y in one.layers)


def test_outputs_in_a_tuple_count_together():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.body(x.view(-1, 2, 4))[1][0][0])

    assert layer(seen(Net()), "body").gradient > 0


def test_convolutions_have_channels_for_units():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    with torch.no_grad():
        model[0].bias[0] = -100.0
    one = seen(model, (X.reshape(8, 2, 4, 4), Y[:8]))
    assert (layer(one, "0").width, layer(one, "1").width) == (5, 5)
    assert layer(one, "1").dead == pytest.approx(0.2)


def test_no_hook_stays():
    model = InPlace()
    seen(model)
    for part in model.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


@pytest.mark.parametrize(
    ("change", "test"),
    [
        ("activation", lambda a, b: layer(b, "1").op == "relu"),
        ("init", lambda a, b: abs(layer(b, "0").activation - 1) < 1e-5),
        ("input", lambda a, b: layer(b, "0").activation != layer(a, "0").activation),
        ("bias", lambda a, b: layer(b, "0").activation != layer(a, "0").activation),
    ],
)
def test_a_change_is_made_on_the_way_and_not_in_the_model(change, test):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    before = [p.clone() for p in model.parameters()]
    a, b = seen(model), seen(model, change=(change, -1), last=1)
    assert test(a, b)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_module_that_resets_itself_is_drawn_anew_unless_it_was_trained():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    probe = TorchProbe(model, loss, (X, Y))
    assert probe.replicates == "reset_parameters"
    assert not probe.same(probe.draw(0), probe.draw(1))
    assert probe.same(probe.draw(3), probe.draw(3))
    with torch.no_grad():
        model[0].weight.mul_(10)
    assert TorchProbe(model, loss, (X, Y)).replicates == ""


def test_a_module_that_resets_its_children_has_the_last_word():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3))
    probe = TorchProbe(model, loss, (X, Y))
    assert probe.replicates == "reset_parameters"
    assert not probe.draw(0)[0].self_attn.out_proj.bias.any()


def test_one_optimizer_step_is_measured_on_a_copy():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = [p.clone() for p in model.parameters()]
    one = TorchProbe(model, loss, (X, Y), optimizer=optimizer).measure(model)
    p = one.parameters[0]
    assert p.update == pytest.approx(0.5 * p.gradient / p.value, rel=1e-5)
    assert all(map(torch.equal, before, model.parameters()))
    assert not optimizer.state


@pytest.mark.parametrize("batch_first", [False, True])
def test_fused_recurrent_layers_show_how_the_gradient_fades(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.RNN(4, 4, batch_first=batch_first, bias=False, nonlinearity="relu")
            with torch.no_grad():
                self.body.weight_hh_l0.copy_(0.5 * torch.eye(4))
                self.body.weight_ih_l0.copy_(torch.eye(4))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            steps = torch.ones(8, 6, 4) if batch_first else torch.ones(6, 8, 4)
            h = self.body(steps + 0 * x.mean())[1][0]
            return self.head(h)

    one = seen(Net(), (X, Y[:8]))
    assert dict(one.fades)["body"] == pytest.approx(5 * math.log10(0.5), abs=1e-4)
