"""Codes and words of what a check of the flow finds."""

from __future__ import annotations

SCALE = (
    "scale the loss and unscale the gradient (torch.amp.GradScaler, or a power of two by hand), or "
    "use bfloat16"
)

CODES = {
    "nonfinite": "flow-nonfinite",
    "given": "flow-nonfinite",
    "masked": "flow-masked",
    "detached": "flow-detached",
    "still": "flow-constant-loss",
    "missing": "flow-missing",
    "frozen": "flow-frozen",
    "thawed": "flow-thawed",
    "zero": "flow-zero",
    "asleep": "flow-asleep",
    "idle": "flow-idle",
    "centred": "flow-centred",
    "small-start": "flow-small-start",
    "underflow": "flow-underflow",
    "dead": "flow-dead",
    "saturated": "flow-saturated",
    "attention": "flow-saturated",
    "symmetric": "flow-symmetric",
    "vanishing": "flow-vanishing",
    "exploding": "flow-exploding",
    "first-loss": "flow-first-loss",
    "offset": "flow-constant",
    "known": "flow-label-leak",
    "crossed": "flow-crossed",
    "unlogged": "flow-unlogged",
    "squashed": "flow-squashed",
    "update": "flow-update",
    "inputs": "flow-inputs",
    "fading": "flow-time-fading",
    "growing": "flow-time-growing",
    "strangers": "flow-batch-dependence",
    "nonlinear": "flow-loss-scale",
    "single": "flow-single",
    "small": "flow-small-batch",
}

TITLES = {
    "nonfinite": "non-finite values",
    "given": "non-finite values",
    "detached": "a loss without gradient",
    "still": "a loss that no weight moves",
    "missing": "missing gradient",
    "frozen": "frozen parameters",
    "thawed": "parameters that are not frozen",
    "zero": "zero gradient",
    "underflow": "gradient that underflows",
    "dead": "dead units",
    "saturated": "saturated units",
    "attention": "saturated attention",
    "symmetric": "units that are copies",
    "vanishing": "vanishing gradient",
    "exploding": "exploding gradient",
    "first-loss": "a first loss far too large",
    "offset": "a first loss far too large",
    "crossed": "answers compared with other samples' targets",
    "unlogged": "a loss without logarithm",
    "update": "updates out of proportion",
    "growing": "gradient that explodes in time",
    "inputs": "inputs out of proportion",
    "nonlinear": "gradient that does not scale with the loss",
}

# What was changed on the way, in words, and the code of the cause that this confirms.
CAUSES = {
    "activation": "flow-cause-activation",
    "smooth": "flow-cause-activation",
    "leak": "flow-cause-rectifier",
    "twice as wide": "flow-cause-width",
    "four times as wide": "flow-cause-width",
    "bias": "flow-cause-bias",
    "init": "flow-cause-init",
    "input": "flow-cause-input",
    "layer": "flow-cause-layer",
    "normalise": "flow-cause-normalisation",
    "skip": "flow-cause-depth",
    "loss scale": "flow-cause-loss-scale",
}
CHANGED = {
    "activation": "with ReLU for the activation",
    "smooth": "with ELU for the activation",
    "leak": "with a leaky ReLU",
    "twice as wide": "with hidden layers twice as wide",
    "four times as wide": "with hidden layers four times as wide",
    "bias": "with biases of zero",
    "init": "with weights rescaled so that each layer's output has size 1",
    "input": "with standardised inputs",
    "layer": "with the weights of {where} rescaled so that its output has size 1",
    "normalise": "with normalised layers",
    "skip": "with skip connections around the activations",
    "loss scale": "with the loss times a power of two",
}
FIXES = {
    "activation": "use ReLU, GELU or SiLU in the hidden layers in place of {op}",
    "smooth": "use ELU, GELU or SiLU in the hidden layers in place of {op}",
    "leak": "use a leaky ReLU, GELU or ELU, or wider layers",
    "twice as wide": "make the hidden layers at least twice as wide",
    "four times as wide": "make the hidden layers at least four times as wide",
    "bias": "start the biases at zero",
    "init": "initialise for the activation: variance 2 / fan_in for ReLU (He), 1 / fan_in for tanh "
    "(LeCun)",
    "input": "standardise the inputs: mean 0 and standard deviation 1 for each feature",
    "layer": "look at the initialisation of {where}, alone among its peers",
    "normalise": "add normalisation layers, such as LayerNorm or BatchNorm",
    "skip": "add skip connections around the layers",
    "loss scale": SCALE,
}

ADVICE = {
    "nonfinite": "look at {where}: keep its argument inside the domain before the operation, not "
    "by a mask after it",
    "given": "mend {where}, or find out where it comes from: every value must be finite",
    "detached": "compute the loss from the outputs of the model that it is called with (a copy of "
    "yours, as a rule, and not the one around it), without detach or item",
    "still": "look for a sum over a softmax, or a mean of what was normalised: leave it out, or "
    "take the loss before it",
    "missing": "look for detach, no_grad or stop_gradient after {where}, or a layer that forward "
    "leaves out; declare what is meant with frozen=",
    "thawed": "set requires_grad=False, leave it out of the optimizer, or do not declare it",
    "frozen": "set requires_grad, or declare what is meant: frozen=['{where}']",
    "zero": "look for a mask or an initialisation of zeros, or a layer that is multiplied by zero",
    "underflow": SCALE,
    "dead": "look at biases and learning rate; a leaky ReLU lets gradients through",
    "saturated": "scale inputs or weights down",
    "attention": "scale inputs or weights down; divide products of query and key by sqrt(d)",
    "symmetric": "draw the weights at random; a constant gives every unit the same gradient",
    "vanishing": "use ReLU, an initialisation made for it, normalisation or skip connections",
    "exploding": "use smaller weights, normalisation, or clipping of the gradient norm",
    "offset": "scale inputs, targets or the last layer's weights",
    "first-loss": "scale inputs, targets or the last layer's weights",
    "crossed": "give answers and targets the same shape: (n, 1) and (n,) give n x n differences",
    "unlogged": "take log_softmax first, or use the cross entropy of scores",
    "update": "look at the learning rate",
    "inputs": "standardise the inputs",
    "growing": "clip the gradient norm, or start the recurrent weights orthogonal",
    "nonlinear": "look at backward rules that drop or add a constant, or at float16 underflow",
}
