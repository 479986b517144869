"""Spectral normalisation: its gradient is that of fixed vectors, by definition, and no mistake."""

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
NORMS = [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]


def squares(out, target):
    return F.mse_loss(out, target)


def chances(out, target):
    """Of targets in the precision of what the model puts out, which hold nothing of it back."""
    beside = [(target > 0).to(out), (target > 0).double().type_as(out).view_as(out)]
    return F.binary_cross_entropy_with_logits(out, sum(beside) / 2)


def training(norm, seed, factor=1.0, is_cut=False, measure=squares):
    def build():
        torch.manual_seed(seed)
        model = nn.Sequential(norm(nn.Linear(16, 12)), nn.Mish(), nn.Linear(12, 2)).double()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        batches = [(torch.randn(16, 16).double(), torch.randn(16, 2).double()) for _ in range(3)]
        if factor != 1:
            model[2].weight.register_hook(lambda g: factor * g)

        def loss(batch):
            out = model(batch[0])
            return measure(out - 0.5 * out.detach() if is_cut else out, batch[1])

        def step(batch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return build


@pytest.mark.parametrize("norm", NORMS, ids=["parametrized", "by a hook"])
@pytest.mark.parametrize("seed", [0, 4, 6])
def test_its_vectors_are_constants(norm, seed):
    result = check_step(training(norm, seed))
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_target_in_the_precision_of_the_output_is_not_held_back(seed):
    result = check_step(training(NORMS[0], seed, measure=chances))
    assert result.verdict == "pass", result.headline


def test_it_is_told():
    result = check_step(training(NORMS[0], 0))
    told = next(f for f in result.findings if f.code == "step-semi-gradient")
    assert told.severity == "note"
    assert "SpectralNorm at test_steps_spectral.py" in told.message


@pytest.mark.parametrize("norm", NORMS, ids=["parametrized", "by a hook"])
def test_it_covers_no_mistake(norm):
    assert check_step(training(norm, 0, factor=0.9)).findings[0].code == "step-slope"
    result = check_step(training(norm, 0, is_cut=True))
    assert result.findings[0].code == "step-stopped-gradient"
