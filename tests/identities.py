"""The identity, with a gradient that is off."""

import torch


def scaled(factor):
    """The identity with its gradient times a factor."""

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return factor * g

    return Scaled.apply
