"""Mistakes in the norm that a clip divides by: of what it is, and how it is put together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_gradcheck.checks.clipping.claim import Claim
from pytest_gradcheck.checks.clipping.judge import Judged
from pytest_gradcheck.checks.clipping.right import TINY, Prediction, Tensors
from pytest_gradcheck.errors import listed
from pytest_gradcheck.numerics import clipping

MOST = 40  # tensors up to which it is asked whether they are clipped in two groups
Size = Callable[[Tensors], float]


@dataclass(frozen=True, slots=True, eq=False)
class Cause:
    """A mistake that was recognised.

    Args:
        code: Code of the finding.
        message: What the clip does, to stand after its name.
        advice: What to try.
        where: Path of a tensor, where one is to blame.
    """

    code: str
    message: str
    advice: str
    where: str = ""


def of_tensors(claim: Claim) -> Iterator[tuple[Cause, Prediction]]:
    """Norms of each tensor that are put together otherwise than by the norm of them."""
    p = claim.norm_type
    told: dict[str, Callable[[list[float]], float]] = {
        "the largest norm of a tensor": max,
        "the sum of the norms of the tensors": math.fsum,
        "the mean of the norms of the tensors": lambda sizes: math.fsum(sizes) / len(sizes),
        "the root of the sum of the norms": lambda sizes: math.sqrt(math.fsum(sizes)),
    }
    sizes = {name: _each(whole, p) for name, whole in told.items()}
    if p != "rms":
        sizes["the root mean square of the elements"] = lambda x: clipping.norm(x, "rms")
    for name, size in sizes.items():
        message = f"takes {name} for the norm of all"
        cause = Cause("clip-norm", message, "take one norm over all elements of all gradients")
        yield cause, to(claim.threshold, size)


def _each(whole: Callable[[list[float]], float], p: float | str) -> Size:
    return lambda x: whole([clipping.norm([g], p) for g in x])


def of_one_tensor(claim: Claim, names: Sequence[str]) -> Iterator[tuple[Cause, Prediction]]:
    """A tensor that is left out, or counted twice, or stands for all."""
    c, p = claim.threshold, claim.norm_type
    whole = functools.partial(clipping.norm, p=p)
    for i, name in enumerate(names):
        rest, alone, twice = (functools.partial(f, i=i, p=p) for f in (_without, _only, _twice))
        give, once = "give all parameters to the clip", "take the norm over every gradient once"
        code = "clip-missed-tensor"
        told = f"leaves {name} as it is and scales the others"
        yield Cause(code, told, give, name), to(c, whole, kept=(i,))
        told = f"leaves {name} out, of the norm too"
        yield Cause(code, told, give, name), to(c, rest, kept=(i,))
        yield Cause("clip-norm", f"leaves {name} out of the norm", once, name), to(c, rest)
        told = f"takes the norm of {name} for that of all"
        yield Cause("clip-norm", told, once, name), to(c, alone)
        yield Cause("clip-tied", f"counts {name} twice in the norm", once, name), to(c, twice)
        told = f"counts {name} twice in the norm, and scales it twice"
        yield Cause("clip-tied", told, once, name), to(c, twice, again=i)


def of_some_tensors(
    wrong: Sequence[Judged], claim: Claim, names: Sequence[str]
) -> Iterator[tuple[Cause, Prediction]]:
    """Several tensors that come out as they went in."""
    kept = untouched(wrong)
    if len(kept) < 2:
        return
    told, advice = f"leaves {some_of(kept, names)} out", "give all parameters to the clip"
    rest = functools.partial(_without_all, kept=kept, p=claim.norm_type)
    yield Cause("clip-missed-tensor", f"{told}, of the norm too", advice), _to(claim, rest, kept)
    whole = functools.partial(clipping.norm, p=claim.norm_type)
    yield Cause("clip-missed-tensor", told, advice), _to(claim, whole, kept)


def _to(claim: Claim, size: Size, kept: tuple[int, ...]) -> Prediction:
    return to(claim.threshold, size, kept)


def untouched(wrong: Sequence[Judged]) -> tuple[int, ...]:
    """Numbers of the tensors that no wrong case changes, where each of them changes another."""
    kept: set[int] | None = None
    for item in wrong:
        pairs = list(zip(item.clipped.before, item.clipped.after, strict=True))
        same = {i for i, (a, b) in enumerate(pairs) if np.array_equal(a, b)}  # type: ignore[arg-type]  # present
        if len(same) < len(pairs):
            kept = same if kept is None else kept & same
    return tuple(sorted(kept or ()))


def some_of(numbers: Sequence[int], names: Sequence[str]) -> str:
    """The names of tensors, the first ones where they are many."""
    told = [names[i] for i in numbers[:3]]
    if len(numbers) > 3:
        return f"{', '.join(told[:2])} and {len(numbers) - 2} more"
    return listed(told)


def of_two_groups(claim: Claim, count: int) -> Iterator[tuple[Cause, Prediction]]:
    """The first tensors and the last ones, each with a norm of their own."""
    for k in range(1, count if count <= MOST else 1):
        yield (
            Cause(
                "clip-per-tensor",
                f"clips the first {k} and the last {count - k} tensors each by themselves, so the "
                f"direction changes",
                "take one norm over all of them",
            ),
            functools.partial(_in_two, k=k, claim=claim),
        )


def _in_two(x: Tensors, k: int, claim: Claim) -> list[np.ndarray]:
    whole = functools.partial(clipping.norm, p=claim.norm_type)
    predict = to(claim.threshold, whole)
    return [*predict(x[:k]), *predict(x[k:])]


def to(threshold: float, size: Size, kept: tuple[int, ...] = (), again: int = -1) -> Prediction:
    """Clipping by some size of the gradients; tensors are kept, or scaled again, where named."""
    return by(lambda n: min(1.0, threshold / n), size, kept, again)


def by(
    factor: Callable[[float], float], size: Size, kept: tuple[int, ...] = (), again: int = -1
) -> Prediction:
    """All gradients times a factor, which some size of them gives; likewise."""

    def predict(x: Tensors) -> list[np.ndarray]:
        scale = factor(max(size(x), TINY))
        powers = [0 if i in kept else 2 if i == again else 1 for i in range(len(x))]
        return [g * scale**power for g, power in zip(x, powers, strict=True)]

    return predict


def _only(x: Tensors, i: int, p: float | str) -> float:
    return clipping.norm([x[i]], p) if i < len(x) else 0.0


def _twice(x: Tensors, i: int, p: float | str) -> float:
    return clipping.norm([*x, *x[i : i + 1]], p)


def _without_all(x: Tensors, kept: tuple[int, ...], p: float | str) -> float:
    return clipping.norm([g for j, g in enumerate(x) if j not in kept], p)


def _without(x: Tensors, i: int, p: float | str) -> float:
    return clipping.norm([g for j, g in enumerate(x) if j != i], p)
