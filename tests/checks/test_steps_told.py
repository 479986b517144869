"""What a failure of a step tells: the line that raised, every name, the difference that counts."""

import importlib

import numpy as np
import pytest

from pytest_gradcheck import GradCheckError, Training, assert_step, check_clipping, check_step

torch = pytest.importorskip("torch")
nn = torch.nn
pytest.importorskip("optax")
loops = importlib.import_module("loops")
loop, STEP = loops.loop, loops.STEP


def broken(batch):
    return batch["x"][5]


def torch_training():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [{"x": torch.ones(2, 2)}]
    return Training(
        step=broken,
        loss=lambda batch: model(batch["x"]).sum(),
        batches=batches,
        model=model,
        optimizer=optimizer,
    )


def numpy_training():
    return Training(
        step=lambda p, s, batch: broken(batch),
        loss=lambda p, batch: float(np.sum(p * batch["x"])),
        batches=[{"x": np.ones((2, 2))}],
        params=np.ones(2),
    )


@pytest.mark.parametrize("training", [torch_training, numpy_training])
def test_what_a_step_raises_is_told_with_its_line_and_its_traceback(training):
    with pytest.raises(GradCheckError) as caught:
        assert_step(training)
    headline = caught.value.result.headline
    assert "the step raised at call 1: IndexError" in headline
    assert "wrong step" not in headline
    assert f"(test_steps_told.py:{broken.__code__.co_firstlineno + 1})" in headline
    cause = caught.value.__cause__
    assert isinstance(cause, IndexError)
    frames = []
    trace = cause.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "broken" in frames


def test_a_failure_without_an_exception_has_no_cause():
    with pytest.raises(GradCheckError) as caught:
        assert_step(torch_training_of(lambda model, optimizer, loss: lambda batch: None))
    assert caught.value.__cause__ is None


def torch_training_of(make):
    made = torch_training()
    step = make(made.model, made.optimizer, made.loss)
    return Training(**{**vars(made), "step": step})


def test_all_parameters_that_no_optimizer_holds_are_named():
    result = loop(STEP, optimizer="AdamW(params[2:], 1e-2)")
    (finding,) = [f for f in result.findings if f.code == "step-not-registered"]
    assert "1.weight" in finding.message or "0.weight" in finding.message
    assert "0.bias" in finding.message
    assert "more)" not in finding.message


@pytest.mark.parametrize("act", ["value = value.detach()", "value = value.data * 2"])
def test_a_loss_without_its_graph_says_nothing_about_the_step(act):
    own = "opt.zero_grad(); nn.functional.mse_loss(model(batch[0]), batch[1]).backward()"
    result = loop(own + "; opt.step()", act=act)
    assert result.verdict == "vacuous", result.headline
    assert "Training.loss gives a tensor that is cut from its graph" in result.headline
    assert "without detach()" in result.advice[0]


def test_a_rate_of_zero_is_told_once_with_what_to_do():
    result = loop(STEP, optimizer="AdamW(params, 0.0)")
    assert result.verdict == "vacuous"
    assert [f.code for f in result.findings].count("step-rate-zero") == 1
    assert any("set a learning rate" in line for line in result.advice)


def test_the_table_shows_a_difference_that_norms_hide():
    body = "loss(batch).backward(); clip(params, 0.2); opt.step()"
    result = loop(body, max_norm=0.2, optimizer="SGD(params, 0.1)")
    table = result.table("updates")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert all(r["received"] == pytest.approx(r["right gradient"], rel=1e-3) for r in rows)
    assert rows[0]["off by"] < 1e-3
    assert max(r["off by"] for r in rows) > 0.01
    right = check_step(torch_training_of(stepping)).table("updates")
    assert all(row[right.columns.index("off by")] < 1e-5 for row in right.rows)


def stepping(model, optimizer, loss):
    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return step


def test_a_clip_that_stumbles_over_none_is_told_what_to_try():
    def clip(params):
        torch.nn.utils.clip_grad_norm_([p for p in params if p.grad.norm() >= 0], 1.0)

    result = check_clipping(clip, max_norm=1.0)
    assert result.findings[0].code == "clip-none"
    assert result.advice == ("skip parameters whose grad is None",)


def test_a_clip_of_parameters_that_raises_is_one_of_torch():
    def clip(params, max_norm):
        raise ValueError("boom")

    result = check_clipping(clip, max_norm=1.0)
    assert result.context.backend == "torch"


def test_a_clip_that_works_in_place_as_torch_does_is_one_of_torch():
    result = check_clipping(lambda ps: [p.data.mul_(0.5) for p in ps] and None, max_norm=1.0)
    assert result.context.backend == "torch"
    assert result.findings[0].code == "clip-not-applied"


def moving_encoder(momentum, factor=1.0):
    """A training whose loss moves an average of its own network, which gives its keys."""
    torch.manual_seed(0)
    query, key = nn.Linear(8, 6), nn.Linear(8, 6).requires_grad_(False)
    key.load_state_dict(query.state_dict())
    optimizer = torch.optim.AdamW(query.parameters(), 1e-2)

    def loss(batch):
        with torch.no_grad():
            for average, p in zip(key.parameters(), query.parameters(), strict=True):
                average.mul_(momentum).add_(p, alpha=1 - momentum)
            keys = nn.functional.normalize(key(batch + 0.1), dim=1)
        found = nn.functional.normalize(query(batch), dim=1)
        return nn.functional.cross_entropy(found @ keys.T / 0.2, torch.arange(len(batch)))

    def step(batch):
        optimizer.zero_grad()
        (factor * loss(batch)).backward()
        optimizer.step()

    batches = [torch.randn(n, 8) for n in (16, 16, 5)]
    model = nn.ModuleList([query, key])
    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
def test_a_momentum_encoder_that_the_loss_moves(momentum):
    result = check_step(lambda: moving_encoder(momentum), semi_gradient="the keys are held")
    assert result.verdict == "pass", result.headline
    wrong = check_step(lambda: moving_encoder(momentum, 2.0), semi_gradient="the keys are held")
    assert "2 times the right gradient" in wrong.headline


def test_a_momentum_encoder_is_named_where_it_counts():
    result = check_step(lambda: moving_encoder(0.9))
    assert result.findings[0].code == "step-stopped-gradient"
    assert "no_grad() at test_steps_told.py" in result.headline
    claimed = check_step(lambda: moving_encoder(0.9), semi_gradient="the keys are held")
    told = {f.code: f.severity for f in claimed.findings}
    assert told["step-semi-gradient"] == "note"
