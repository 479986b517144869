"""PyTorch: custom autograd functions and whole modules.

Pass the function or the module, then its inputs. A module brings its trainable parameters with
it: they are under test like the inputs, and are the same as before afterwards.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it


@pytest.fixture(autouse=True)
def seeded():
    # Weights and inputs are drawn below; leave the generator as it was found.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# --- custom autograd functions ----------------------------------------------------------------


class LogCosh(torch.autograd.Function):
    """log(cosh(x)) without overflow; its derivative is simply tanh(x)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        size = x.abs()
        return size + torch.log1p(torch.exp(-2 * size)) - math.log(2)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * torch.tanh(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_log_cosh(gradcheck, size, dtype):
    gradcheck(LogCosh.apply, size * torch.randn(20, dtype=dtype))


class BiasGelu(torch.autograd.Function):
    """GELU of x + bias; keeps one tensor for the backward pass where autograd keeps several."""

    @staticmethod
    def forward(ctx, x, bias):
        z = x + bias
        ctx.save_for_backward(z)
        return F.gelu(z)

    @staticmethod
    def backward(ctx, cotangent):
        (z,) = ctx.saved_tensors
        below = torch.special.ndtr(z)  # the normal distribution function, then its density
        density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        dz = cotangent * (below + z * density)
        return dz, dz.reshape(-1, dz.shape[-1]).sum(0)  # the bias was broadcast over the rest


def test_bias_gelu(gradcheck):
    gradcheck(BiasGelu.apply, torch.randn(2, 5, 8), torch.randn(8))


# --- modules, in the precision and mode they train in -----------------------------------------


class Transformer(nn.Module):
    """A small sequence classifier: embedding, two encoder layers, mean over the positions."""

    def __init__(self, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(
            16, nhead=4, dim_feedforward=32, dropout=dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)).mean(dim=1))


def test_transformer(gradcheck):
    # float32, dropout on. The tokens are integers and pass through; what is checked is every
    # parameter, all at once, with the same dropout mask in every evaluation.
    gradcheck(Transformer(), torch.randint(0, 20, (4, 6)))


def test_part_of_a_transformer(gradcheck):
    model = Transformer(dropout=0.0).double()
    gradcheck(model, torch.randint(0, 20, (4, 6)), wrt=["head", "encoder.layers.1.self_attn.*"])


def test_loss_of_a_model(gradcheck):
    """A function of parameters and batch, as ``torch.func`` likes it."""
    model = Transformer(dropout=0.0)

    def loss(params, tokens, labels):
        return F.cross_entropy(torch.func.functional_call(model, params, tokens), labels)

    tokens, labels = torch.randint(0, 20, (4, 6)), torch.tensor([0, 2, 1, 1])
    gradcheck(loss, dict(model.named_parameters()), tokens, labels)


def test_batch_norm_while_training(gradcheck):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradcheck(model, torch.randn(8, 1, 6, 6))
    # A forward pass in training mode moves the running averages; those of the check leave no trace.
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_frozen_backbone(gradcheck):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    result = gradcheck(model, torch.randn(5, 6))
    assert [row[0] for row in result.table("resolution").rows] == ["2.weight", "2.bias", "input"]
