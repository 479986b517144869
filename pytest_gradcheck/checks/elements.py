"""Where within an input its gradient is wrong: single elements, or those that share something.

Halving finds an element among n with log2(n) looks, each at one half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pytest_gradcheck.checks import slices
from pytest_gradcheck.checks.case import Numbers
from pytest_gradcheck.checks.compare import Comparison
from pytest_gradcheck.checks.parts import Chosen, Parts
from pytest_gradcheck.checks.patterns import TELLING, Diagnosis, Place, common_factor
from pytest_gradcheck.numerics.seeds import derive

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

MOST_PLACES = 3
MOST_SPLITS = 3  # halvings with errors in both halves, after which many elements are wrong
FEWEST_MASKED = 3  # that have something in common, and not by chance
SAMPLE = 12
# As many wrong elements anywhere meet a condition on values so often; and with a factor in common.
CHANCE, COMMON_CHANCE = 0.02, 0.2
MANY = 64  # elements: beyond, no two of them meet one by chance
FAINT = 1e-3  # of an element's own derivative, which is seen where that is asked

Mask = NDArray[np.bool_]


def few(parts: Parts) -> Diagnosis | None:
    """Up to ``MOST_PLACES`` wrong elements, if they account for the whole error.

    Where the error is not large beside the bound, they are those with the most of it.
    """
    if parts.size < 2:
        return None
    places: list[Place] = []
    left = parts.whole.difference
    unsure = parts.whole.bound + parts.whole.slack
    rest: Chosen = np.arange(parts.size)
    while len(places) < MOST_PLACES and abs(left) > unsure and not _is_spent(parts):
        element = _halved(parts, rest, left)
        if element is None:
            return None
        seen = parts.at(np.array([element]), left)
        if not seen.is_off:
            return None
        places.append(parts.place(element, seen))
        rest = rest[rest != element]
        left -= seen.difference
        unsure += seen.bound
    if abs(left) > unsure or len(places) == parts.size:
        return None
    # The more elements are wrong, the likelier are others, with errors too small to show.
    if TELLING ** len(places) * unsure > abs(parts.whole.difference):
        return Diagnosis("other", places=tuple(places))
    return _masked_alone(parts, places) or _element(parts, places)


def _halved(parts: Parts, chosen: Chosen, error: float) -> int | None:
    """The element with most of the error, followed down; None where it spreads over many."""
    unsure, splits = parts.whole.bound + parts.whole.slack, 0
    while len(chosen) > 1:
        half = len(chosen) // 2
        seen = parts.at(chosen[:half], error)
        here, there = seen.difference, error - seen.difference
        unsure += seen.bound
        splits += min(abs(here), abs(there)) > unsure
        if splits > MOST_SPLITS or not seen.is_known or max(abs(here), abs(there)) <= seen.bound:
            return None
        chosen, error = (chosen[:half], here) if abs(here) >= abs(there) else (chosen[half:], there)
    return int(chosen[0])


def _element(parts: Parts, places: list[Place]) -> Diagnosis:
    places.sort(key=lambda place: -abs(place.comparison.difference))
    factor = places[0].comparison.ratio if len(places) == 1 else math.nan
    only = [words for words, mask in _by_sign(parts.case.x) if _are_all(places, mask)]
    return Diagnosis("element", "".join(only[:1]), factor, tuple(places))


def _are_all(places: Sequence[Place], mask: Mask) -> bool:
    """Whether a mask picks these elements and no other."""
    return int(mask.sum()) == len(places) and all(mask[place.index] for place in places)


def _masked_alone(parts: Parts, places: list[Place]) -> Diagnosis | None:
    """The same few elements as all those for which some condition holds."""
    claimed = [place.comparison for place in places]
    is_zero = all(c.claimed == 0 for c in claimed)
    is_common = is_zero or not math.isnan(common_factor(claimed))
    if len(places) < FEWEST_MASKED and not (len(places) == 2 and is_common):
        return None
    for words, mask in _conditions(parts.case.x):
        if _are_all(places, mask) and not _is_chance(parts.case.x, words, mask, is_common):
            found = Diagnosis("masked", words, places=tuple(places))
            return _named(found, is_zero, claimed)
    return None


def masked(parts: Parts) -> Diagnosis | None:
    """A condition under which the gradient is wrong throughout, and otherwise right."""
    if parts.clarity < TELLING**2:  # the other elements may be less wrong, and not right
        return None
    left_out = _left_out(parts)
    if left_out is not None:
        return left_out
    tried: list[Mask] = []
    for words, mask in _conditions(parts.case.x):
        if _is_tried(mask, tried) or _is_spent(parts):
            continue
        tried.append(mask)
        is_wrong = _sides(parts, np.flatnonzero(mask))
        opposite = (w for w, m in _conditions(parts.case.x) if (m != mask).all())
        found = None
        if is_wrong == (True, False):
            found = _holding(parts, words, np.flatnonzero(mask))
        elif is_wrong == (False, True) and (told := next(opposite, "")):
            found = _holding(parts, told, np.flatnonzero(~mask))
        if found is not None:  # wrong in each part of it, so that no narrower one holds
            return found
    return None


def _holding(parts: Parts, words: str, inside: Chosen) -> Diagnosis | None:
    """What is wrong under a condition; one on places must show wherever it holds.

    Else some indices of an axis are taken for all but the first.
    """
    mask = np.zeros(parts.case.x.shape, bool)
    mask.flat[inside] = True
    found = _explained(parts, words, inside)
    if found and _is_chance(parts.case.x, words, mask, not math.isnan(found.factor)):
        return replace(found, detail=slices.counted(mask))
    is_on_values = words.startswith("where")
    return found if is_on_values or not found or slices.show_everywhere(parts, inside) else None


def _is_chance(x: Numbers, words: str, mask: Mask, is_common: bool) -> bool:
    """Whether a condition on values is met by chance, by as many elements as a mask picks."""
    count = int(mask.sum())
    if not words.startswith("where") or mask.size > MANY:
        return False
    alike = {m.tobytes() for w, m in _conditions(x) if w.startswith("where") and m.sum() == count}
    ways = math.comb(mask.size, count) * (COMMON_CHANCE if is_common else CHANCE)
    return len(alike) > ways


def sliced(parts: Parts) -> Diagnosis | None:
    """The indices of an axis at which the gradient is wrong throughout, and otherwise right."""
    if parts.clarity < TELLING**2:
        return None
    places = np.arange(parts.size).reshape(parts.case.x.shape)
    lengths: tuple[int, ...] = places.shape if places.ndim > 1 else ()
    for axis, length in enumerate(lengths):
        if length < 3 or parts.size // length < FEWEST_MASKED or _is_spent(parts):
            continue
        indices = slices.wrong_along(parts, axis)
        inside = np.ravel(places.take(indices, axis)) if indices else np.empty(0, np.intp)
        if _sides(parts, inside) == (True, False):
            return _explained(parts, slices.in_words(indices, axis, length), inside)
    return None


def _left_out(parts: Parts) -> Diagnosis | None:
    """The elements that get zero for every cotangent, if they are what is wrong."""
    mask = ~np.any([g != 0 for g in parts.case.gradients], axis=0)
    if not 0 < mask.sum() < mask.size or _sides(parts, np.flatnonzero(mask)) != (True, False):
        return None
    x = parts.case.x
    alike = (words for words, other in _conditions(x) if (mask == other).all())
    known = (words for words in alike if not _is_chance(x, words, mask, True))
    told = next(known, "") or slices.in_a_row(mask) or slices.counted(mask)
    return _explained(parts, told, np.flatnonzero(mask))


def _sides(parts: Parts, inside: Chosen) -> tuple[bool, bool]:
    """Whether the gradient is wrong inside and outside, from one look inside."""
    if not 0 < len(inside) < parts.size:
        return True, True
    whole, seen = parts.whole, parts.at(inside, parts.whole.difference)
    outside = abs(whole.difference - seen.difference)
    return seen.is_off, outside > whole.bound + whole.slack + seen.bound


def _explained(parts: Parts, words: str, inside: Chosen) -> Diagnosis | None:
    """What is wrong under a condition; nothing where it does not show in each part of it.

    The parts are thirds of its elements in a row, and in the order of their values. Nor where it
    shows in a third of the others, whose errors may cancel along the whole direction.
    """
    if len(inside) < FEWEST_MASKED:
        return None
    by_value = inside[np.argsort(abs(parts.case.x.ravel()[inside]), kind="stable")]
    looks = []
    for third in (*np.array_split(inside, 3), *np.array_split(by_value, 3)):
        looks.append(parts.look(third, parts.whole.difference))
        if looks[-1].off is None:
            return None
    outside = np.setdiff1d(np.arange(parts.size), inside)
    for third in np.array_split(outside, min(3, len(outside))):
        if parts.look(third, parts.whole.difference).off is not None:
            return None
    comparisons = [c for look in looks for c in look.comparisons if c.is_known]
    is_zero = not any(g.ravel()[inside].any() for g in parts.case.gradients)
    return _named(Diagnosis("masked", words), is_zero, comparisons)


def _named(found: Diagnosis, is_zero: bool, comparisons: Sequence[Comparison]) -> Diagnosis:
    return replace(found, factor=0.0 if is_zero else common_factor(comparisons))


def _is_tried(mask: Mask, tried: list[Mask]) -> bool:
    return any((mask == other).all() or (mask != other).all() for other in tried)


def _conditions(x: Numbers) -> Iterator[tuple[str, Mask]]:
    """Conditions on elements, in words, each beside its opposite."""
    for words, mask in _by_sign(x):
        yield f"where it is {words}", mask
    if not np.iscomplexobj(x):
        yield from (
            ("where it is above 1 in size", abs(x) > 1),
            ("where it is below 1 in size", abs(x) <= 1),
        )
    if x.ndim < 2:
        return
    for words, offset in (("above", 1), ("below", -1)):
        triangle = np.triu if offset > 0 else np.tril
        above = np.broadcast_to(triangle(np.ones(x.shape[-2:]), offset) > 0, x.shape)
        yield f"{words} the diagonal", above
    diagonal = np.broadcast_to(np.eye(*x.shape[-2:]) > 0, x.shape)
    yield from (("on the diagonal", diagonal), ("off the diagonal", ~diagonal))
    for axis, length in enumerate(x.shape):
        place = np.arange(length).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        for told, at in (("first", 0), ("last", length - 1)):
            yield f"at the {told} index of axis {axis}", np.broadcast_to(place == at, x.shape)
            yield f"behind the {told} index of axis {axis}", np.broadcast_to(place != at, x.shape)


def _by_sign(x: Numbers) -> list[tuple[str, Mask]]:
    if np.iscomplexobj(x):
        return []
    known = {"negative": x < 0, "positive": x > 0, "not negative": x >= 0, "not positive": x <= 0}
    return list(known.items())


def pooled(parts: Parts) -> Diagnosis | None:
    """A gradient that was summed or averaged over an axis and handed to every element of it."""
    shape, gradients = parts.case.x.shape, parts.case.gradients
    every = [(axis,) for axis in range(len(shape)) if shape[axis] > 1]
    for axes in [tuple(range(len(shape))), *every] if len(shape) > 1 else every:
        length = math.prod(shape[axis] for axis in axes)
        if length < 2 or any(np.ptp(abs(g), axis=axes).any() for g in gradients):
            continue
        look = parts.along(parts.averaged(axes), parts.whole.difference)
        factor = common_factor([c for c in look.comparisons if c.is_known])
        told = "all axes" if len(axes) > 1 else f"axis {axes[0]}"
        for words, expected in (("mean", 1.0), ("sum", float(length))):
            if abs(factor / expected - 1) < 1e-3:
                said = f"the {words} over {told} in every element"
                return Diagnosis("broadcast", said, factor)
    return None


def many(parts: Parts) -> Diagnosis:
    """How many elements of a sample are wrong, and which."""
    if parts.size < 2:
        return Diagnosis("other")
    draw = np.random.default_rng(derive(parts.survey.seed, "sample"))
    sample = draw.permutation(parts.size)[:SAMPLE]
    tried, wrong = 0, []
    for element in sample:
        own = abs(parts.gradient[element] * parts.direction[element])
        error = max(FAINT * float(own), abs(parts.whole.difference) / 100 / math.sqrt(parts.size))
        if _is_spent(parts):
            break
        seen, tried = parts.at(np.array([element]), error), tried + 1
        wrong += [parts.place(int(element), seen)] if seen.is_off else []
    if not tried:
        return Diagnosis("other")
    shown = tuple(wrong[:MOST_PLACES])
    told = f"{len(wrong) or 'none'} of {tried} elements tried"
    if wrong and all(abs(p.comparison.reference) <= p.comparison.bound for p in wrong):
        told += ", where zero is right"
    elif wrong and all(p.comparison.claimed == 0 for p in wrong):
        told += ", which get zero"
    return Diagnosis("other", told, places=shown, share=len(wrong) / tried)


def _is_spent(parts: Parts) -> bool:
    return parts.survey.plan.probe.cost.is_spent
