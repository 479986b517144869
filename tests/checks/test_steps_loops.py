"""Loops that are right and unusual: silent as they are, and caught with one mistake in them."""

import importlib
import sys
from pathlib import Path

import pytest

from pytest_gradcheck import check_step

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
LOOPS = importlib.import_module("corpora.steps_loops_odd").LOOPS
sys.path.pop(0)


@pytest.mark.parametrize("name", LOOPS)
def test_a_right_loop_is_not_accused(name):
    build, claims = LOOPS[name]
    result = check_step(lambda: build(False), **claims)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("name", LOOPS)
def test_a_mistake_in_it_is(name):
    build, claims = LOOPS[name]
    result = check_step(lambda: build(True), **claims)
    assert result.verdict == "fail"
    assert "gradient" in result.headline


def picture(training):
    """All state of a training, as bytes and plain values."""
    listed = isinstance(training.optimizer, (list, tuple))
    optimizers = list(training.optimizer) if listed else [training.optimizer]
    model = training.model
    tensors = [*model.parameters(), *model.buffers()]
    grads = [p.grad for p in model.parameters()]
    state = [v for o in optimizers for s in o.state.values() for v in s.values()]
    groups = [
        {k: v for k, v in g.items() if k != "params"} for o in optimizers for g in o.param_groups
    ]
    members = [[id(p) for p in g["params"]] for o in optimizers for g in o.param_groups]
    raw = [t.detach().cpu().numpy().tobytes() for t in (*tensors, *grads, *state) if t is not None]
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    return raw, repr(groups), members, flags, modes, torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", LOOPS)
def test_it_is_left_as_it_was(name):
    build, claims = LOOPS[name]
    training = build(False)
    before, entered = picture(training), torch.autocast.__enter__
    result = check_step(training, **claims)
    assert result.verdict == "pass", result.headline
    assert picture(training) == before
    assert torch.autocast.__enter__ is entered
