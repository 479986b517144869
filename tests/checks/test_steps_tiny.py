"""A gradient that is made tiny beside the others, and ones that are: which of both is the slope."""

import pytest

from pytest_gradcheck import Training, check_step

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def found(result, code):
    return next((f for f in result.findings if f.code == code), None)


def deep(hook, seed, dtype="float32"):
    """Three layers, of which one gradient is made another."""

    def build():
        torch.manual_seed(seed)
        sizes = [(4, 6), (6, 6), (6, 1)]
        layers = [m for n, k in sizes for m in (nn.Linear(n, k), nn.Tanh())][:-1]
        model = nn.Sequential(*layers).to(getattr(torch, dtype))
        hook(model)
        opt = torch.optim.AdamW(model.parameters(), 1e-2)
        rows = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(4)]
        batches = [tuple(x.to(getattr(torch, dtype)) for x in row) for row in rows]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            opt.zero_grad()
            loss(batch).backward()
            opt.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    return build


TINY = {
    "a factor": lambda g: g * 3e-3,
    "a small factor": lambda g: g * 1e-6,
    "a clamp": lambda g: g.clamp(-1e-3, 1e-3),
    "noise": lambda g: g * 1e-3 * torch.sin(torch.arange(g.numel()) * 7.0).reshape(g.shape).sign(),
}


@pytest.mark.parametrize(("place", "seed"), [("0.weight", 0), ("2.bias", 1), ("4.weight", 2)])
@pytest.mark.parametrize("name", TINY)
def test_a_gradient_that_is_made_tiny_is_found(name, place, seed):
    def hook(model):
        model.get_parameter(place).register_hook(TINY[name])

    result = check_step(deep(hook, seed))
    told = found(result, "step-slope")
    assert (result.verdict, told.severity) == ("fail", "fail")
    assert place in told.message


@pytest.mark.parametrize("factor", [3e-3, 1e-6])
@pytest.mark.parametrize(("place", "seed"), [("0.weight", 1), ("2.weight", 2)])
def test_a_row_that_is_made_tiny_is_found(place, factor, seed):
    def shrunk(g):
        kept = torch.ones(len(g))
        kept[g.norm(dim=1).argmax()] = factor
        return g * kept[:, None]

    result = check_step(deep(lambda m: m.get_parameter(place).register_hook(shrunk), seed))
    assert result.verdict == "fail", result.headline
    assert place in found(result, "step-slope").message


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("factor", [1e-2, 1e-4, 1e-7])
def test_a_gradient_that_is_tiny_is_right(factor, dtype):
    def shrink(model):
        model[2].weight.data.mul_(factor)
        model[4].bias.data.add_(1 / factor**0.5)  # beside it all others are small

    result = check_step(deep(shrink, 0, dtype))
    assert result.verdict == "pass", result.headline
