"""Named mistakes of an optimizer, and the conventions in which right ones differ.

Each is a change of the hyperparameters of ``optimizers.py``; a replay with the change that agrees
with every update names the mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_gradcheck.numerics.optimizers import DECAY, Hyper

Change = dict[str, Any]
_ADAMS = ("adam", "adamw", "nadam", "nadamw", "radam", "lamb", "adamax")
# Conventions of frameworks, none of them a mistake. PyTorch's are the defaults.
DIALECTS: dict[str, tuple[Change, ...]] = {
    "adam": ({"amsgrad": "corrected"},),
    "adamw": ({"amsgrad": "corrected"},),
    "nadam": ({"rule": "adam", "nesterov": "optax"},),
    "nadamw": ({"rule": "adamw", "nesterov": "optax"},),
    # optax subtracts two large numbers in the rectification, which costs float32 its digits.
    "radam": ({"eps_in": "corrected", "float32": 2e-2},),
    "rmsprop": ({"eps_in": "inside"},),
    "adagrad": (
        {"eps_in": "inside"},
        {"eps_in": "inside", "initial_accumulator_value": 0.1, "eps": 1e-7},
    ),
    "sgd": ({"undampened": False},),
    "muon": ({"bfloat16": "fused"}, {"bfloat16": "apart"}),
}


def dialects(name: str, h: Hyper) -> Iterator[Change]:
    """The conventions in which an optimizer may be right, the plain one first."""
    yield {}
    for change in DIALECTS.get(name, ()):
        if change.get("amsgrad") and not h.get("amsgrad"):
            continue
        yield change


def variants(name: str, h: Hyper) -> Iterator[tuple[str, Change]]:
    """Pairs of a mistake in words and the change that makes it."""
    flipped = {"maximize": not h.get("maximize")}
    yield "with the sign of the gradient turned around (it ascends)", flipped
    if h.get("weight_decay"):
        yield from _decays(name, h)
    elif name not in ("lamb", "lars"):
        yield "with decay where none is claimed", {"weight_decay": 0.01, "decay": "decoupled"}
        yield "with decay where none is claimed", {"weight_decay": 0.01, "decay": "coupled"}
    yield "applied twice", {"times": 2.0}
    if name in _ADAMS:
        yield from _adams(name, h)
    if h.get("momentum"):
        yield "without momentum", {"momentum": 0.0}
    if name == "sgd" or (name == "lars"):
        yield from _momenta(h)
    if name == "rmsprop":
        yield "with the root of the second moment missing", {"power": 1.0}
    if name == "lion":
        b1, b2 = h["betas"]
        yield "with betas swapped", {"betas": (b2, b1)}
    if name in ("rmsprop", "adagrad", "adadelta"):
        yield "without a second moment", {"rule": "sgd", "momentum": 0.0}
    if name != "sgd" or h.get("momentum"):
        yield "with its state lost at every step", {"forget": True, "stuck": True}
        yield "with its moments lost at every step", {"forget": True}


def _decays(name: str, h: Hyper) -> Iterator[tuple[str, Change]]:
    rate, claimed = h["weight_decay"], h.get("decay", DECAY.get(name, "coupled"))
    words = {
        "coupled": "with coupled decay (in the gradient)",
        "decoupled": "with decoupled decay",
        "after": "with decay of the weights that are updated already",
        "unscaled": "with decay that is not multiplied by the learning rate",
        "none": "without decay",
        "added": "with the sign of the decay turned around",
    }
    for decay, told in words.items():
        if decay != claimed:
            yield told, {"decay": decay}
    yield "with decay applied twice", {"weight_decay": 2 * rate}
    yield "with half of the decay", {"weight_decay": rate / 2}


def _adams(name: str, h: Hyper) -> Iterator[tuple[str, Change]]:
    b1, b2 = h["betas"]
    if name in ("adam", "adamw", "lamb", "nadam", "nadamw"):
        yield "with eps inside the root", {"eps_in": "inside"}
        yield "with eps added before the bias correction", {"eps_in": "scaled"}
        yield "with the root of the second moment missing", {"power": 1.0}
    if name in ("adam", "adamw", "lamb"):
        yield from _corrections(h)
    yield "with betas swapped", {"betas": (b2, b1)}
    if (b1, b2) != (0.9, 0.999):
        yield "with betas (0.9, 0.999)", {"betas": (0.9, 0.999)}
    yield "with its count always 1", {"stuck": True}
    yield "without a first moment", {"betas": (0.0, b2)}
    yield "without a second moment", {"rule": "sgd", "momentum": 0.0}
    if name != "adamax":
        yield "with a first moment that sums instead of averaging", {"weight": 1.0}


def _corrections(h: Hyper) -> Iterator[tuple[str, Change]]:
    yield "without bias correction", {"correct": "none"}
    yield "without bias correction of the second moment", {"correct": "first"}
    yield "without bias correction of the first moment", {"correct": "second"}
    yield "with the bias correction multiplied", {"correct": "multiplied"}
    yield "with its count one too large", {"late": 1}
    yield "with its count one too small", {"late": -1}
    yield "with the first moment from before the gradient", {"stale": True}
    if h.get("amsgrad"):
        yield "without amsgrad", {"amsgrad": False}
    else:
        yield "with the second moment from before the gradient", {"early": True}
        yield "with amsgrad", {"amsgrad": True}


def _momenta(h: Hyper) -> Iterator[tuple[str, Change]]:
    momentum = h.get("momentum") or 0.0
    if not momentum:
        yield "with momentum 0.9", {"momentum": 0.9}
        return
    if not h.get("dampening"):
        averaged = {"dampening": momentum, "undampened": False}
        yield "with momentum that averages (dampening)", averaged
        yield "with momentum that averages (dampening)", {"dampening": momentum}
    else:
        yield "without dampening", {"dampening": 0.0}
    if h.get("nesterov"):
        yield "without Nesterov's look ahead", {"nesterov": False}
    else:
        yield "with Nesterov momentum", {"nesterov": True}
