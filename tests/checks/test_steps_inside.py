"""Losses that write, draw and freeze inside of a step: right ones pass, wrong ones are named."""

import copy

import pytest
from trainings import batches, net, plain, usual

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
F = torch.nn.functional
nn = torch.nn


def codes(result):
    return [f.code for f in result.findings]


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1)


# --- what a loss writes ---------------------------------------------------------------------


def moco(factor=1.0):
    """The momentum encoder moves inside of the forward, before the keys are made."""
    torch.manual_seed(0)
    model = nn.Module()
    model.q = nn.Linear(8, 8)
    model.k = copy.deepcopy(model.q).requires_grad_(False)

    def loss(batch):
        with torch.no_grad():
            for p, k in zip(model.q.parameters(), model.k.parameters(), strict=True):
                k.mul_(0.999).add_(p, alpha=0.001)
            keys = F.normalize(model.k(batch[1]), dim=1)
        logits = F.normalize(model.q(batch[0]), dim=1) @ keys.T / 0.07
        return F.cross_entropy(logits, torch.arange(len(logits)))

    opt = torch.optim.SGD(model.q.parameters(), 0.03, momentum=0.9)

    def step(batch):
        opt.zero_grad()
        (factor * loss(batch)).backward()
        opt.step()

    given = batches((16, 16, 5), (8, 8))
    return Training(step=step, loss=loss, batches=given, model=model, optimizer=opt)


def test_a_momentum_encoder_that_moves_in_the_loss():
    result = check_step(moco)
    assert result.verdict == "pass", result.headline
    assert "3 times the right gradient" in check_step(lambda: moco(3.0)).headline


def group_dro(factor=1.0):
    """The loss moves its group weights in place."""
    model, weights = net(), torch.ones(2) / 2

    def loss(batch):
        each = (model(batch[0]) - batch[1]).pow(2)
        groups = torch.stack([each[::2].mean(), each[1::2].mean()])
        with torch.no_grad():
            weights.mul_((0.1 * groups).exp())
            weights.div_(weights.sum())
        return (weights.clone() * groups).sum()

    def step(model, opt, loss, batch):
        usual(model, opt, lambda batch: factor * loss(batch), batch)

    return plain(step, model=model, optimizer=sgd, loss=loss), weights


def test_weights_of_groups_that_the_loss_moves():
    result = check_step(lambda: group_dro()[0])
    assert result.verdict == "pass", result.headline
    assert "3 times the right gradient" in check_step(lambda: group_dro(3.0)[0]).headline


def test_what_a_loss_writes_is_as_it_was_after_the_check():
    training, weights = group_dro()
    before = weights.clone()
    check_step(training)
    assert torch.equal(weights, before)


# --- who is frozen for a while --------------------------------------------------------------


def gan(draw, step):
    """A discriminator and a generator, each with its loss and its optimizer."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    G = nn.Linear(2, 4)
    opts = [torch.optim.Adam(m.parameters(), 1e-3) for m in (D, G)]

    def of_d(batch):
        fake = D(G(draw(batch)).detach())
        return F.softplus(-D(batch)).mean() + F.softplus(fake).mean()

    def of_g(batch):
        return F.softplus(-D(G(draw(batch)))).mean()

    return Training(
        step=lambda batch: step(D, G, *opts, of_d, of_g, batch),
        loss=[of_d, of_g],
        batches=[torch.randn(n, 4) for n in (16, 16, 5)],
        model=nn.ModuleList([D, G]),
        optimizer=opts,
    )


def pix2pix(D, G, of_its, of_theirs, d_loss, g_loss, batch):
    D.requires_grad_(True)
    of_its.zero_grad()
    d_loss(batch).backward()
    of_its.step()
    D.requires_grad_(False)
    of_theirs.zero_grad()
    g_loss(batch).backward()
    of_theirs.step()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_discriminator_that_is_frozen_for_the_generator_only(is_frozen):
    def training():
        found = gan(lambda batch: batch[:, :2], pix2pix)
        found.model[0].requires_grad_(not is_frozen)
        return found

    made = training()
    result = check_step(made)
    assert result.verdict == "pass", result.headline
    assert all(p.requires_grad is not is_frozen for p in made.model[0].parameters())


def test_a_frozen_layer_that_momentum_moves_is_still_found():
    def step(model, opt, loss, batch, calls=[0]):  # noqa: B006  # counts
        calls[0] += 1
        loss(batch).backward()
        model[0].requires_grad_(calls[0] < 3)
        opt.step()
        opt.zero_grad(set_to_none=False)

    def training():
        return plain(
            lambda *given, calls=[0]: step(*given, calls),  # counts
            optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9),
        )

    assert "step-frozen-moved" in codes(check_step(training))


# --- random numbers -------------------------------------------------------------------------


def alternating(D, G, of_its, of_theirs, d_loss, g_loss, batch, factor=1.0):
    of_its.zero_grad()
    d_loss(batch).backward()
    of_its.step()
    of_theirs.zero_grad()
    (factor * g_loss(batch)).backward()
    of_theirs.step()


def noise(batch):
    return torch.randn(len(batch), 2)


def test_losses_that_draw_one_after_another():
    result = check_step(lambda: gan(noise, alternating))
    assert result.verdict == "pass", result.headline

    def wrong(*given):
        alternating(*given, factor=3.0)

    assert "3 times" in check_step(lambda: gan(noise, wrong)).headline


def logged(model, opt, loss, batch):
    with torch.no_grad():
        loss(batch)
    loss(batch).backward()
    opt.step()
    opt.zero_grad()


def test_a_loss_that_is_logged_before():
    result = check_step(lambda: plain(logged, model=net(lambda: nn.Dropout(0.3))))
    assert result.verdict == "pass", result.headline


def zeroed(model, opt, loss, batch):
    opt.zero_grad()
    loss(batch).backward()
    model[0].weight.grad[0] = 0
    opt.step()


def test_a_wrong_gradient_of_a_model_with_dropout():
    result = check_step(lambda: plain(zeroed, model=net(lambda: nn.Dropout(0.3))))
    assert result.verdict == "fail"
    assert codes(result)[0] == "step-wrong-gradient"
    assert "0.weight" in result.headline


def test_other_random_numbers_stay_undecided():
    def step(model, opt, loss, batch):
        torch.rand(3)
        with torch.no_grad():
            model(batch[0])
        opt.zero_grad()
        x = batch[0] + 0.1 * torch.randn_like(batch[0])
        loss((x, batch[1])).backward()
        opt.step()

    result = check_step(lambda: plain(step, model=net(lambda: nn.Dropout(0.3))))
    assert (result.verdict, codes(result)[0]) == ("undecided", "step-random")


# --- gradients at other parameters ----------------------------------------------------------


def sharpness_aware(model, opt, loss, batch, factor=1.0):
    params = list(model.parameters())
    loss(batch).backward()
    norm = float(torch.stack([p.grad.norm() for p in params]).norm())
    old = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p in params:
            p.add_(p.grad, alpha=0.05 / norm)
    opt.zero_grad()
    (factor * loss(batch)).backward()
    with torch.no_grad():
        for p, value in zip(params, old, strict=True):
            p.copy_(value)
    opt.step()
    opt.zero_grad()


def test_sharpness_aware_minimisation_written_out():
    result = check_step(lambda: plain(sharpness_aware, optimizer=sgd))
    assert result.verdict == "pass", result.headline
    assert "step-perturbed" in codes(result)

    def wrong(*given):
        sharpness_aware(*given, factor=3.0)

    assert check_step(lambda: plain(wrong, optimizer=sgd)).verdict == "fail"


def test_parameters_that_are_not_put_back_are_no_such_thing():
    def step(model, opt, loss, batch):
        opt.zero_grad()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
        loss(batch).backward()
        opt.step()

    result = check_step(lambda: plain(step, optimizer=sgd))
    assert "step-perturbed" not in codes(result)
    assert "step-written" in codes(result)
