"""What all verbs share: the values of a call, the place it was made, failing the test."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec

from pytest_gradcheck import collector as collecting
from pytest_gradcheck.errors import CAUSES, GradCheckError, GradCheckWarning, UsageError
from pytest_gradcheck.limits import Limits
from pytest_gradcheck.reports import text
from pytest_gradcheck.results import Context, Result
from pytest_gradcheck.verbs import misuse

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_PACKAGE = str(Path(__file__).parents[1])
P = ParamSpec("P")


def narrowed(verb: str, **values: object) -> Limits:
    """The limits of a verb in the running test, with those on top that the call sets."""
    limits = collecting.current().limits_for(verb)
    return limits.narrowed("call", f"{verb}(...)", given(**values))


def circumstances(seed: int | None) -> Context:
    """Seed, place and test of a call.

    Raises:
        UsageError: The seed is no integer.
    """
    collector = collecting.current()
    return Context(
        seed=collector.test_seed() if seed is None else _whole(seed),
        location=_location(),
        test=collector.test,
    )


def _whole(seed: int) -> int:
    """A seed as a plain integer.

    Raises:
        UsageError: It is no integer.
    """
    try:
        return operator.index(seed)  # a NumPy integer would not cross to another process
    except TypeError:
        raise UsageError(f"seed={seed!r} is not allowed; allowed: an integer") from None


def given(**values: object) -> dict[str, object]:
    """The limits that a call sets."""
    return {name: value for name, value in values.items() if value is not None}


def asked(check: Callable[P, Result]) -> Callable[P, Result]:
    """The verb, which says in its own words what is wrong with the arguments of a call."""

    @functools.wraps(check)
    def answering(*args: P.args, **kwargs: P.kwargs) -> Result:
        return _answer(check, check.__name__, *args, **kwargs)

    return answering


def _answer(check: Callable[P, Result], name: str, /, *args: P.args, **kwargs: P.kwargs) -> Result:
    wrong = None
    try:
        return check(*args, **kwargs)
    except TypeError as error:
        if not misuse.is_of_the_call(error):
            raise
        wrong = misuse.refusal(check, name, args, kwargs)
    raise wrong


def asserting(check: Callable[P, Result]) -> Callable[P, Result]:
    """The verb that also fails the test, from the verb that only answers."""
    plain: Callable[P, Result] = inspect.unwrap(check)
    name = check.__name__.replace("check", "assert", 1)

    @functools.wraps(check)
    def raising(*args: P.args, **kwargs: P.kwargs) -> Result:
        __tracebackhide__ = True
        causes: list[BaseException] = []
        token = CAUSES.set(causes)
        try:
            result = _answer(plain, name, *args, **kwargs)
        finally:
            CAUSES.reset(token)
        raise_for(result, causes)
        return result

    verb = check.__name__
    raising.__name__ = raising.__qualname__ = name
    raising.__doc__ = (
        f"Like ``{verb}``, and fail the test unless the verdict is ``pass``.\n\n"
        "Raises:\n"
        "    GradCheckError: The verdict is ``fail``; or ``undecided`` or ``vacuous`` where these\n"
        "        are not set to ``warn``.\n"
        "    UsageError: The call cannot be carried out as written.\n"
    )
    return raising


def raise_for(result: Result, causes: Sequence[BaseException] = ()) -> None:
    """Raise or warn as the verdict and the policy in its limits ask for.

    Args:
        result: What was found.
        causes: What the user's code raised meanwhile; the one that a finding tells of is the
            cause of the failure.

    Raises:
        GradCheckError: The verdict is not green and not set to ``warn``.
    """
    __tracebackhide__ = True
    if result.verdict == "pass" or collecting.current().is_report_only:
        return
    policy = {use.name: use.value for use in result.limits}
    if policy.get(result.verdict) == "warn":
        warnings.warn(result.headline, GradCheckWarning, stacklevel=_depth())
        return
    told = " ".join(f.message for f in result.findings if f.severity == "fail")
    cause = next((error for error in causes if f"{type(error).__name__}: " in told), None)
    here = collecting.current().here or result.context.test
    shown = replace(result, context=replace(result.context, test=here))
    raise GradCheckError(text.failure(shown), result) from cause


def _depth() -> int:
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    return depth


def _location() -> str:
    """``file:line`` of the user's call."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    # Outside the working directory: the whole path.
    path = frame.f_code.co_filename.removeprefix(os.getcwd() + os.sep)  # noqa: PTH109  # a Path takes as long as a small check
    return f"{path.replace(os.sep, '/')}:{frame.f_lineno}"
