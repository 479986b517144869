"""The order of what happens inside a step, as a line of words."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

from pytest_gradcheck.checks.steps import left
from pytest_gradcheck.checks.steps.contract import Contract
from pytest_gradcheck.checks.steps.measure import Run
from pytest_gradcheck.checks.steps.windows import Window
from pytest_gradcheck.results import Finding

Event = tuple[str, float]
SHOWN = 12


def timeline(events: Sequence[Event]) -> str:
    """The words in their order, repetitions counted."""
    told: list[str] = []
    counts: list[int] = []
    for word, _ in events:
        if told and told[-1] == word:
            counts[-1] += 1
        else:
            told.append(word)
            counts.append(1)
    words = [w if n == 1 else f"{n} x {w}" for w, n in zip(told, counts, strict=True)]
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (", …" if more > 0 else "")


def words(window: Window) -> list[str]:
    """The words of a window."""
    return [word for word, _ in window.events]


def clip_is_late(window: Window) -> bool:
    """Whether a clip came only after the step."""
    seen = words(window)
    if "step" not in seen:
        return False
    step = seen.index("step")
    return not any(w.startswith("clip") for w in seen[:step]) and any(
        w.startswith("clip") for w in seen[step:]
    )


def unzeroed(window: Window) -> int:
    """Backward passes before the step that nothing set to zero between them."""
    seen = words(window)
    before = seen[: seen.index("step")] if "step" in seen else seen
    last = max((i for i, w in enumerate(before) if w == "zero_grad"), default=-1)
    return before[last + 1 :].count("backward")


def clips_between(window: Window) -> int:
    """Clips before the step that a further backward pass follows, on top of what they clipped."""
    seen = words(window)
    before = seen[: seen.index("step")] if "step" in seen else seen
    last = max((i for i, w in enumerate(before) if w == "zero_grad"), default=-1)
    kept = [w for w in before[last + 1 :] if w == "backward" or w.startswith("clip")]
    return sum(a != "backward" and b == "backward" for a, b in itertools.pairwise(kept))


def clip_is_scaled(window: Window) -> bool:
    """Whether gradients were clipped before a scaler unscaled them."""
    seen = words(window)
    clips = [i for i, w in enumerate(seen) if w.startswith("clip")]
    scaled = [i for i, w in enumerate(seen) if w in ("unscale", "scaler step")]
    return bool(clips) and bool(scaled) and min(clips) < min(scaled)


def findings(run: Run, contract: Contract) -> list[Finding]:
    """What is wrong with the order itself, whatever it does to the gradient."""
    found = [*_skipped(run), *_schedulers(run, contract), *_steps(run)]
    found += _empty_clips(run) or _partial_clips(run)
    unclipped = next((w for w in run.windows if clip_is_late(w)), None)
    if unclipped is not None:
        found.append(
            Finding(
                code="step-clip-late",
                severity="fail",
                message=f"gradients are clipped after the optimizer has used them "
                f"({timeline(unclipped.events)}); clip between backward and step",
            )
        )
    return found


def unfinite(run: Run) -> list[Finding]:
    """A loss that is not finite, with which an update was made all the same."""
    for window in run.windows:
        for k, loss in enumerate(() if window.is_spared else window.losses):
            if not math.isfinite(loss):
                return [
                    Finding(
                        code="step-loss-nonfinite",
                        severity="fail",
                        message=f"the loss is {loss} at call {window.first + k} of the step, and "
                        f"update {window.number} is made with it; look at the batch, and at "
                        f"{_left(run, window)}",
                    )
                ]
    return []


def _left(run: Run, window: Window) -> str:
    """What a loss that is not finite may come from, beside its batch."""
    if run.bad is None or not 0 < run.bad.after < window.first:
        return "the parameters that the update before left"
    return f"what the skipped batch after call {run.bad.after} left in the optimizer's state"


def _empty_clips(run: Run) -> list[Finding]:
    """Clips that had nothing to clip: of no parameters, or of a model without gradients."""
    for window in run.windows:
        for clip in window.clips:
            told = "no parameters at all" if not clip.given else ""
            if clip.given and not clip.places and not clip.with_gradient:
                told = f"{clip.given} tensors without gradients, none of them trained here"
            if told:
                return [
                    Finding(
                        code="step-clip-empty",
                        severity="fail",
                        message=f"the clip is given {told} (update {window.number}), so that "
                        f"nothing is clipped; give it a list of the parameters that are trained "
                        f"(a generator is used up by its first reader)",
                    )
                ]
    return []


def _partial_clips(run: Run) -> list[Finding]:
    """Clips that together leave out some of the tensors that one optimizer trains."""
    for window in run.windows:
        clipped = {i for clip in window.clips for i in clip.places}
        for update in window.updates:
            mine = {i for i, g in enumerate(update.received or ()) if g is not None}
            if mine & clipped and mine - clipped:
                return [
                    Finding(
                        code="step-clip-partial",
                        severity="warn",
                        message=f"the clip is given {len(mine & clipped)} of {len(mine)} tensors "
                        f"that are trained, and not {run.names[min(mine - clipped)]} (update "
                        f"{window.number}); give it all of them, if no part is meant to be free",
                    )
                ]
    return []


def _skipped(run: Run) -> list[Finding]:
    skipped = [run.calls[number - 1] for number in run.skipped]
    skipped += [run.bad.call] if run.bad is not None and not run.bad.call.updates else []
    for call in skipped:
        if "scheduler" in [word for word, _ in call.events]:
            return [
                Finding(
                    code="step-scheduler",
                    severity="fail",
                    message=f"the scheduler advances though the update was skipped "
                    f"({timeline(call.events)}); advance it only after an update",
                )
            ]
    return []


def _schedulers(run: Run, contract: Contract) -> list[Finding]:
    """A scheduler that advances too soon or too often, unless its rates are claimed: then they say.

    Only the first update can come too late: what stands before a later one, such as the start of
    an epoch, is after the one before it.
    """
    if contract.schedule is not None or not run.windows:
        return []
    for window in run.windows:
        count = max(Counter(n for w, n in window.events if w == "scheduler").values(), default=0)
        # One that counts calls advances with those too that are left out of a longer window.
        extra = max((window.count - n for n in left.full(run, contract)), default=0)
        if count > 1 + max(extra, 0):
            return [
                Finding(
                    code="step-scheduler",
                    severity="fail",
                    message=f"a scheduler advances {count} times for one update "
                    f"({timeline(window.events)}); advance it once, after the update, or claim "
                    f"schedule= if that is meant",
                )
            ]
    first = run.windows[0]
    seen = words(first)
    early = seen[: seen.index("step")] if "step" in seen else []
    if "scheduler" not in early or all(rate == 0 for rate in getattr(run.loop, "rates", ())):
        return []
    return [
        Finding(
            code="step-scheduler",
            severity="fail",
            message=f"the scheduler advances before the optimizer ({timeline(first.events)}), so "
            f"the first learning rate is skipped; advance it after step(), or claim schedule= if "
            f"that is meant",
        )
    ]


def _steps(run: Run) -> list[Finding]:
    """An optimizer that steps again without a backward pass in between."""
    for number, call in enumerate(run.calls, start=1):
        for which in {u.which for u in call.updates}:
            places = [u.place for u in call.updates if u.which == which]
            between = [[w for w, _ in call.events[a:b]] for a, b in itertools.pairwise(places)]
            count = 1 + sum("backward" not in each for each in between)
            if count > 1:
                return [
                    Finding(
                        code="step-repeated",
                        severity="fail",
                        message=f"the optimizer steps {count} times for one gradient in call "
                        f"{number} of the step ({timeline(call.events)}); step once for each",
                    )
                ]
    return []
