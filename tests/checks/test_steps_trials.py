"""Trials that an optimizer refuses, guesses that explain nothing, and Muon in bfloat16."""

import pytest
from trainings import plain, usual

from pytest_gradcheck import check_step

torch = pytest.importorskip("torch")
nn = torch.nn


def codes(result):
    return [f.code for f in result.findings]


class Sam(torch.optim.Optimizer):
    """Its signature says that the closure may be left out, and it may not."""

    def __init__(self, params):
        super().__init__(params, {"rho": 0.05, "lr": 0.1})
        self.base = torch.optim.SGD(self.param_groups, 0.1, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "SAM requires closure"
        params = [p for g in self.param_groups for p in g["params"]]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * 0.05 / norm)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p in params:
            p.data = self.state[p]["old"]
        self.base.step()


def test_an_optimizer_that_needs_its_closure_is_left_out_of_that_trial():
    def step(model, opt, loss, batch):
        def closure():
            value = loss(batch)
            value.backward()
            return value

        closure()
        opt.step(closure)
        opt.zero_grad()

    result = check_step(lambda: plain(step, optimizer=lambda m: Sam(m.parameters())))
    assert result.verdict == "pass", result.headline
    told = next(f for f in result.findings if f.code == "step-restore")
    assert told.severity == "note"
    assert "SAM requires closure" in told.message


def test_a_state_that_cannot_be_saved():
    def step(model, opt, loss, batch, calls):
        calls.append(1)
        if len(calls) == 3:  # a state stays behind for a parameter that no group holds
            opt.state[torch.zeros(1)] = {"step": torch.zeros(())}
        usual(model, opt, loss, batch)

    def training():
        calls = []
        return plain(lambda *given: step(*given, calls))

    result = check_step(training)
    assert codes(result)[0] == "step-restore"
    assert "cannot be saved (KeyError" in result.headline


def test_the_other_mode_of_a_model_without_modes_explains_nothing():
    def step(model, opt, loss, batch):
        usual(model, opt, lambda batch: 1.001 * loss(batch), batch)

    result = check_step(lambda: plain(step))
    assert "1.001 times the right gradient" in result.headline


@pytest.mark.parametrize("claims", [{}, {"accumulate": 2, "max_norm": 1.0}])
def test_a_sum_that_is_clipped_is_named(claims):
    def step(model, opt, loss, batch, calls):
        calls.append(1)
        loss(batch).backward()
        if len(calls) % 2 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()

    def training():
        calls = []
        return plain(lambda *given: step(*given, calls), sizes=(16,) * 4)

    result = check_step(training, **claims)
    assert codes(result)[0] == "step-gradient-sum"


def muon(seed=0, **hyper):
    """Square matrices, whose gradients are nearly singular: bfloat16 leaves much undetermined."""
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 16, bias=False), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(16, 1))
    model[4].requires_grad_(False)

    def optimizer(model):
        return torch.optim.Muon([model[0].weight, model[2].weight], **{"lr": 1e-2, **hyper})

    return plain(usual, model=model, optimizer=optimizer)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
class TestMuon:
    @pytest.mark.parametrize("seed", range(4))
    def test_is_replayed_with_its_rounding(self, seed):
        result = check_step(lambda: muon(seed))
        assert result.verdict == "pass", result.headline

    def test_another_learning_rate_is_found(self):
        result = check_step(lambda: muon(lr=1.5e-2), optimizer="muon", lr=1e-2)
        assert "learning rate of update 1 is 0.015, not the claimed 0.01" in result.headline

    def test_another_momentum_is_found(self):
        result = check_step(lambda: muon(momentum=0.9), optimizer="muon", lr=1e-2, momentum=0.95)
        assert result.verdict == "fail"
