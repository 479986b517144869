"""The first loss against that of a model that answers zero, and of one that answers a constant."""

from __future__ import annotations

import math

from pytest_gradcheck.backends.layers import Pass
from pytest_gradcheck.checks.flow.passes import Passes, Statistics
from pytest_gradcheck.checks.flow.symptom import Symptom
from pytest_gradcheck.numerics import depth
from pytest_gradcheck.numerics.intervals import of_mean

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

EXCESS = 1.0  # decades by which a first loss may exceed that of a simple answer
KNOWN = math.log10(0.5)  # a fresh model that does better than this knows the labels
WORDS = {"labels": "the entropy of the labels", "targets": "the variance of the targets"}


def symptoms(passes: Passes, seen: Statistics) -> list[Symptom]:
    """What the first loss shows, the plainest first."""
    return _mistaken(passes) + (_excessive(passes, seen) or _beside_constant(passes))


def _mistaken(passes: Passes) -> list[Symptom]:
    """Mistakes in the loss that its value tells for certain, in every initialisation."""
    known = [one.constant for one in passes.finite]
    kinds = {each.kind if each else "" for each in known}
    if kinds == {"crossed"}:
        told = "the loss compares each answer with the target of every sample, not with its own"
        return [Symptom("crossed", "", told)]
    if kinds == {"unlogged"}:
        told = "the loss adds up the scores of the labels, where their log probabilities belong"
        is_bounded = all(each is not None and each.is_squashed for each in known)
        return [Symptom("unlogged", "", told, (), "warn" if is_bounded else "fail")]
    if known and all(each is not None and each.is_squashed for each in known):
        told = "the loss takes the softmax of answers that have been through one already"
        return [Symptom("squashed", "", told, (), "warn")]
    return []


def _excessive(passes: Passes, seen: Statistics) -> list[Symptom]:
    if not seen.excess:
        return []
    ratio = of_mean(seen.excess, 0.1)
    if ratio.side(EXCESS) <= 0:
        return []
    is_even = any(one.constant and one.constant.kind == "labels" for one in passes.finite)
    whose = "even odds" if is_even else "a model which answers zero"
    told = f"the first loss is {10**ratio.mean:.2g} times that of {whose}"
    return [Symptom("first-loss", "", told, (("ratio", 10.0**ratio.mean),), "warn")]


def _beside_constant(passes: Passes) -> list[Symptom]:
    """A loss that is known for certain, beside what the best constant answer costs."""
    ratios = [ratio(one) for one in passes.finite]
    kinds = {one.constant.kind for one in passes.finite if one.constant is not None}
    if not ratios or any(map(math.isnan, ratios)) or len(kinds) > 1:
        return []
    (kind,), over = kinds, of_mean(ratios, 0.1)
    numbers = (("ratio", 10.0**over.mean),)
    if over.side(EXCESS) > 0:
        told = f"the first loss is {10**over.mean:.2g} times {WORDS[kind]}"
        return [Symptom("offset", "", f"{told}, which a constant answer costs", numbers, "warn")]
    if kind == "labels" and not passes.is_single and max(ratios) < KNOWN:
        told = f"the first loss is {10**over.mean:.2g} times {WORDS[kind]}, before any training"
        return [Symptom("known", "", f"{told}: do the inputs tell them?", numbers, "warn")]
    return []


def ratio(one: Pass) -> float:
    """Log10 of the loss over that of the best constant answer; NaN where that is not known."""
    if one.constant is None or not one.loss or math.isnan(one.constant.loss):
        return math.nan
    return depth.log_ratio(one.loss, one.constant.loss)
