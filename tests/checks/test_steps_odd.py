"""Updates at odd times, tokens and windows: what is not accused, and what still is."""

import importlib
import sys
from pathlib import Path

import pytest
from loops import loop

from pytest_gradcheck import Training, UsageError, check_step, lightning_training

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
ODD = importlib.import_module("corpora.steps_loops_odd")
sys.path.pop(0)
F = torch.nn.functional


def codes(result):
    return [f.code for f in result.findings]


def parts(factor=1.0, *, is_whole=False):
    """Four updates in a call, each with a quarter of the batch, or with all of it."""
    model = ODD.net()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    loss = ODD.mean_square(model)

    def step(batch):
        for k in range(0, 16, 4):
            opt.zero_grad()
            part = batch if is_whole else tuple(x[k : k + 4] for x in batch)
            (factor * loss(part)).backward()
            opt.step()

    batches = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(3)]
    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)


def test_parts_of_a_batch_that_cannot_be_seen_are_undecided():
    result = check_step(parts)
    assert result.verdict == "undecided"
    assert result.findings[0].code == "step-not-compared"
    assert "4 times in a call" in result.headline


def test_several_updates_with_the_whole_batch_are_seen():
    result = check_step(lambda: parts(is_whole=True))
    assert result.verdict == "pass", result.headline
    assert len(result.table("updates").rows) == 28
    result = check_step(lambda: parts(3.0, is_whole=True))
    assert "3 times the right gradient" in result.headline


def test_an_update_without_a_backward_pass_in_between():
    result = loop("opt.zero_grad(); loss(batch).backward(); opt.step(); opt.step()")
    assert "step-repeated" in codes(result)
    assert "2 times for one gradient" in result.headline


def test_a_mean_of_means_of_tokens():
    result = check_step(lambda: ODD.tokens(False, True), accumulate=2)
    assert result.verdict == "fail"
    assert "micro-batches of unequal size count the same" in result.headline


def masked(is_mean):
    """A mean over a mask that no framework knows of; batches of other widths."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    made = [torch.randn(4, n) for n in (4, 12, 6, 16)]
    batches = [(x, torch.randn_like(x), (x > 0).float()) for x in made]
    number = [0]

    def loss(batch):
        x, y, mask = batch
        return ((model(x[..., None])[..., 0] - y) ** 2 * mask).sum() / mask.sum()

    def step(batch):
        start = number[0] % 4 // 2 * 2
        total = sum(float(b[2].sum()) for b in batches[start : start + 2])
        number[0] += 1
        (loss(batch) * (0.5 if is_mean else float(batch[2].sum()) / total)).backward()
        if number[0] % 2 == 0:
            opt.step()
            opt.zero_grad()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)


def test_the_weight_of_a_batch_as_a_function():
    claims = {"accumulate": 2, "weights": lambda batch: batch[2].sum()}
    result = check_step(lambda: masked(False), **claims)
    assert result.verdict == "pass", result.headline
    result = check_step(lambda: masked(True), **claims)
    assert "micro-batches of unequal size count the same" in result.headline


@pytest.mark.parametrize("is_mean", [False, True])
def test_weights_that_nobody_knows_are_a_warning(is_mean):
    result = check_step(lambda: masked(is_mean), accumulate=2)
    assert result.verdict == "pass", result.headline
    told = next(f for f in result.findings if f.code == "step-weights")
    assert told.severity == "warn"
    assert "together shows" in told.message


@pytest.mark.parametrize("weights", [3, "rows"])
def test_other_weights_are_refused(weights):
    with pytest.raises(UsageError, match="a function of a batch"):
        check_step(lambda: masked(False), accumulate=2, weights=weights)


@pytest.mark.parametrize("given", [-1, float("nan"), "many"])
def test_a_weight_that_is_none_is_refused(given):
    with pytest.raises(UsageError, match="must give a number"):
        check_step(lambda: masked(False), accumulate=2, weights=lambda batch: given)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ODD.net()

    def training_step(self, batch, number):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Tripled(Module):
    def on_before_optimizer_step(self, optimizer):
        ODD.spoil(True, self)


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5, 5), (8, 8, 8, 8, 3)])
def test_lightning_divides_short_windows_like_the_others(sizes):
    def training(kind=Module):
        batches = [(torch.randn(n, 4), torch.randn(n, 1)) for n in sizes]
        return lightning_training(kind(), batches, accumulate_grad_batches=2)

    result = check_step(training)
    assert result.verdict == "pass", result.headline
    (told,) = (f for f in result.findings if f.code == "step-window")
    assert told.severity == "note"
    assert check_step(training, accumulate=2).verdict == "pass"
    assert "3 times the right gradient" in check_step(lambda: training(Tripled)).headline


def test_what_is_claimed_frozen_and_follows_nobody():
    result = loop(
        "opt.zero_grad(); loss(batch).backward(); opt.step(); model[0].weight.data.mul_(0.9)",
        optimizer="SGD(params[1:], 1e-2)",
        frozen="0.weight",
    )
    assert "0.weight is claimed as frozen, and moves outside" in result.headline


def test_a_weak_claim_stands_beside_what_was_not_seen():
    result = check_step(parts, schedule=[1e-2, 1e-2])
    assert result.verdict == "undecided"
    assert "weak-claim" in codes(result)


def test_a_parameter_that_is_detached_is_no_dead_one():
    result = loop(
        "opt.zero_grad(); loss(batch).backward(); opt.step()",
        forward="torch.nn.functional.linear(model[:2](x), model[2].weight.detach(), model[2].bias)",
    )
    assert "2.weight has no gradient, and the loss changes with it" in result.headline


STEP = "opt.zero_grad(); loss(batch).backward(); opt.step()"


def test_an_average_that_is_copied_into_the_model_undoes_its_training():
    result = loop(
        STEP
        + "; memory.setdefault('mean', old)"
        + "; memory['mean'] = [0.99 * a + 0.01 * b for a, b in zip(memory['mean'], values())]"
        + "; place(memory['mean'])",
        first="old = [p.detach().clone() for p in params]",
    )
    assert result.findings[0].code == "step-written"
    assert result.verdict == "fail"
    assert "1% is left" in result.headline


@pytest.mark.parametrize(
    "written",
    [
        "[p.data.clamp_(-0.01, 0.01) for p in params]",  # of a critic
        "[p.data.mul_(0.999) for p in params]",
        "number % 3 or place([(a + b) / 2 for a, b in zip(values(), memory['slow'])])",
    ],
)
def test_weights_that_are_clipped_or_averaged_now_and_then(written):
    result = loop(f"memory.setdefault('slow', values()); {STEP}; {written}")
    assert result.verdict == "pass", result.headline
    told = next(f for f in result.findings if f.code == "step-written")
    assert told.severity == "warn"


def test_a_parameter_that_is_another_object_on_the_way():
    new = "setattr(model[0], 'weight', nn.Parameter(model[0].weight.detach().clone()))"
    result = loop(f"number == 2 and {new}; {STEP}")
    assert "0.weight is another tensor after call 2" in result.headline
    rebuilt = "opt.param_groups[0]['params'].append(model[0].weight)"
    result = loop(f"number == 2 and ({new}, {rebuilt}); {STEP}")
    (told,) = (f for f in result.findings if f.code == "step-replaced")
    assert (told.severity, result.verdict) == ("warn", "pass")


class Counting(torch.optim.Optimizer):
    """A rate that falls with a count, which stands where nobody saves it, or in the groups."""

    def __init__(self, params, is_saved):
        super().__init__(params, {"lr": 1e-2, "count": 0})
        self.is_saved, self.count = is_saved, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        group = self.param_groups[0]
        group["count"] += 1
        number = group["count"] if self.is_saved else self.count
        for p in group["params"]:
            p.sub_(p.grad, alpha=group["lr"] / number)


@pytest.mark.parametrize("is_saved", [True, False])
def test_what_an_optimizer_keeps_beside_its_state_is_lost_when_it_is_saved(is_saved):
    def training():
        model = ODD.net()
        opt, loss = Counting(model.parameters(), is_saved), ODD.mean_square(model)

        def step(batch):
            opt.zero_grad()
            loss(batch).backward()
            opt.step()

        return Training(step=step, loss=loss, batches=ODD.epoch(), model=model, optimizer=opt)

    assert ("step-restore" in codes(check_step(training))) != is_saved
    made = training()
    check_step(made)
    assert made.optimizer.count == 0
    assert made.optimizer.param_groups[0]["count"] == 0


def test_batches_that_can_be_drawn_once_only():
    def training(factor=1.0):
        made = parts(factor, is_whole=True)
        return Training(**{**vars(made), "batches": iter(made.batches)})

    assert check_step(training).verdict == "pass"
    assert "3 times the right gradient" in check_step(lambda: training(3.0)).headline


def test_batches_of_two_losses_that_can_be_drawn_once_only():
    build, _ = ODD.LOOPS["a critic twice in a call"]

    def training():
        made = build(False)
        return Training(**{**vars(made), "batches": iter(made.batches)})

    assert check_step(training).verdict == "pass"
