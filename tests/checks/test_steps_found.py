"""What an adversarial search found: mistakes that passed, and right loops that did not."""

import pytest

from pytest_gradcheck import Training, UsageError, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
WHY = {"semi_gradient": "a part of the features is held"}


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def code(result, name):
    return next((f for f in result.findings if f.code == name), None)


def step_of(model, opt, loss, batch, state):
    opt.zero_grad()
    loss(batch).backward()
    opt.step()


def adamw(params):
    return torch.optim.AdamW(params, 1e-3)


def checked(
    *,
    model=mlp,
    forward=lambda m, x: m(x),
    hook=None,
    make=adamw,
    body=step_of,
    draw=None,
    **claims,
):
    """The result of a check of a small regression in which one thing is changed."""

    def training():
        torch.manual_seed(0)
        net = model()
        opt = make(list(net.parameters()))
        if hook:
            hook(net)
        state = {}

        def loss(batch):
            return F.mse_loss(forward(net, batch[0]), batch[1])

        inputs = draw or (lambda: torch.randn(16, 8))
        batches = [(inputs(), torch.randn(16, 1)) for _ in range(4)]
        return Training(
            step=lambda batch: body(net, opt, loss, batch, state),
            loss=loss,
            batches=batches,
            model=net,
            optimizer=opt,
        )

    return check_step(training, **claims)


# --- a part of a tensor without gradient ---------------------------------------------------------


class Half(torch.autograd.Function):
    """A backward that leaves half of the units out."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g[:, :8] = 0
        return g


class Fused(nn.Module):
    """Attention whose queries and keys are detached, in one weight with its values."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 1)

    def forward(self, x):
        q, k, v = self.qkv(x.reshape(4, 4, 8)).chunk(3, -1)
        return self.out(torch.softmax(q.detach() @ k.detach().mT, -1) @ v).reshape(16, 1)


def half_detached(m, x):
    h = m[1](m[0](x))
    return m[2](torch.cat([h[:, :8].detach(), h[:, 8:]], 1))


def rows(m):
    m[0].weight.register_hook(lambda g: torch.cat([0 * g[:8], g[8:]]))


PARTS = {
    "half detached": ({"forward": half_detached}, "step-stopped-gradient"),
    "fused": ({"model": Fused}, "step-stopped-gradient"),
    "backward": (
        {"forward": lambda m, x: m[2](Half.apply(m[1](m[0](x))))},
        "step-slope",
    ),
    "rows": ({"hook": rows}, "step-slope"),
    "triangle": (
        {"hook": lambda m: m[0].weight.register_hook(lambda g: g.tril())},
        "step-slope",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_tensor_without_gradient_is_seen(name):
    changed, word = PARTS[name]
    result = checked(**changed)
    assert result.verdict == "fail", result.headline
    told = code(result, word)
    assert "is 0 in a part of" in told.message
    assert ("qkv.weight" if name == "fused" else "0.weight") in told.message


def test_a_part_that_is_held_and_claimed_passes_and_is_needed():
    result = checked(forward=half_detached, **WHY)
    assert result.verdict == "pass", result.headline
    assert code(result, "weak-claim") is None
    assert code(result, "step-semi-gradient").severity == "note"


class Padded(nn.Module):
    """Words whose padding counts in the mean, and is not learned: what torch says of it."""

    def __init__(self, is_function=False):
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=None if is_function else 3)
        self.out = nn.Linear(8, 1)
        nn.init.normal_(self.table.weight)

    def forward(self, x):
        return self.out(F.embedding(x, self.table.weight, padding_idx=3).mean(1))


class Dead(nn.Module):
    """Units that no sample reaches, some at their kink."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 1)
        with torch.no_grad():
            self.one.bias[:4] = -20.0
            self.one.bias[4:8] = 0.0
            self.one.weight[4:8] = 0.0

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


def words():
    x = torch.randint(20, (16, 6))
    x[:, 4:] = 3
    return x


class Masked(nn.Module):
    """Weights that a mask keeps out of the loss."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.two(torch.tanh(F.linear(x, self.one.weight.tril(), self.one.bias)))


RIGHT = {
    "padding": {"model": Padded, "draw": words},
    "padding of a function": {"model": lambda: Padded(True), "draw": words},
    "dead units": {"model": Dead},
    "masked": {"model": Masked},
    "words that are not there": {
        "model": lambda: nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(16, 1)),
        "draw": lambda: torch.randint(4, (16, 2)),
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_part_that_the_loss_does_not_follow_is_not_accused(name):
    result = checked(**RIGHT[name])
    assert result.verdict == "pass", result.headline


# --- optimizers and models of other shapes -------------------------------------------------------


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one that never calls the constructor of its class."""

    def __init__(self, base):
        self.base, self.param_groups, self.state = base, base.param_groups, base.state
        self.defaults = base.defaults

    def step(self, closure=None):
        self.base.step()

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad()


def test_an_optimizer_without_hooks_is_watched():
    def wrapped(params):
        return Wrapper(torch.optim.SGD(params, 0.1))

    def twice(model, opt, loss, batch, state):
        opt.zero_grad()
        (2 * loss(batch)).backward()
        opt.step()

    before = Wrapper.step
    result = checked(make=wrapped)
    assert result.verdict == "pass", result.headline
    assert code(checked(make=wrapped, body=twice), "step-gradient-scale").severity == "fail"
    assert Wrapper.step is before


def test_a_model_whose_sizes_are_not_known_yet_is_refused_with_the_reason():
    with pytest.raises(UsageError, match=r"LazyLinear.*one batch"):
        checked(model=lambda: nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.Linear(3, 1)))


class Decaying(torch.optim.Optimizer):
    """Gradient descent with a decay under another name than that of torch."""

    def __init__(self, params, at_rest=0.0):
        super().__init__(params, {"lr": 0.1, "wd": 0.01, "at_rest": at_rest})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * (p.grad + group["wd"] * p) + group["at_rest"])


def test_a_decay_that_is_claimed_moves_what_has_no_gradient():
    claims = {"optimizer": "sgd", "lr": 0.1}
    result = checked(make=Decaying, weight_decay=0.01, **claims)
    assert result.verdict == "pass", result.headline
    assert checked(make=Decaying, **claims).verdict == "fail"
    drifting = checked(make=lambda ps: Decaying(ps, 1e-5), weight_decay=0.01, **claims)
    assert drifting.verdict == "fail"


# --- a clip of a part of what is trained ---------------------------------------------------------


def clipping(*chosen):
    def body(model, opt, loss, batch, state):
        opt.zero_grad()
        loss(batch).backward()
        params = list(model.parameters())
        for part in chosen:
            nn.utils.clip_grad_norm_(params[part], 0.1)
        opt.step()

    return body


def test_a_clip_of_a_part_is_told():
    told = code(checked(body=clipping(slice(2))), "step-clip-partial")
    assert told.severity == "warn"
    assert "2 of 4 tensors" in told.message


@pytest.mark.parametrize("chosen", [(slice(4),), (slice(2), slice(2, 4)), ()])
def test_clips_that_cover_everything_are_not(chosen):
    assert code(checked(body=clipping(*chosen)), "step-clip-partial") is None


def test_a_clip_for_one_of_two_optimizers_is_not():
    def two(params):
        return [torch.optim.AdamW(params[:2], 1e-3), torch.optim.AdamW(params[2:], 1e-3)]

    def body(model, opts, loss, batch, state):
        model.zero_grad()
        loss(batch).backward()
        nn.utils.clip_grad_norm_(list(model.parameters())[:2], 0.1)
        for opt in opts:
            opt.step()

    result = checked(make=two, body=body)
    assert result.verdict == "pass", result.headline
    assert code(result, "step-clip-partial") is None


# --- a factor that is another one at every update ------------------------------------------------


class Uncorrected(torch.optim.Optimizer):
    """Adam without the bias correction of its first moment."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p] or {"t": 0, "m": 0 * p, "v": 0 * p}
            t, m = state["t"] + 1, 0.9 * state["m"] + 0.1 * p.grad
            v = 0.999 * state["v"] + 0.001 * p.grad**2
            self.state[p] = {"t": t, "m": m, "v": v}
            p -= self.param_groups[0]["lr"] * m / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def test_a_missing_bias_correction_is_no_learning_rate():
    result = checked(make=Uncorrected, optimizer="adam", lr=1e-3)
    assert "without bias correction of the first moment" in result.headline


def test_a_rate_that_is_another_one_is_told_as_such():
    result = checked(make=lambda ps: torch.optim.Adam(ps, 2e-3), optimizer="adam", lr=1e-3)
    assert "lr=0.002" in result.headline
