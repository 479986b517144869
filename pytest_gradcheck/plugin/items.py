"""One test: its collector, its limits, and its results on their way to the controller.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import os
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradcheck.collector import Collecting, Collector
from pytest_gradcheck.errors import GradCheckError, UsageError
from pytest_gradcheck.limits import VERBS, Limits
from pytest_gradcheck.plugin import markers
from pytest_gradcheck.plugin.progress import Progress, on_terminal
from pytest_gradcheck.plugin.session import SETTINGS, guarded

if TYPE_CHECKING:
    from pytest_gradcheck.results import Result

COLLECTOR = pytest.StashKey[Collector]()
NAME = pytest.StashKey[str]()
PROGRESS = pytest.StashKey["Progress | None"]()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a test that uses a fixture of ours the marker of the same name; note its node id."""
    item.stash[NAME] = item.nodeid  # as it is written: xdist's loadgroup will append "@group"
    for verb in VERBS:
        if verb in getattr(item, "fixturenames", ()):
            item.add_marker(getattr(pytest.mark, verb)(**{markers.AUTOMATIC: True}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Open the collector of a test for all its phases and attempts."""
    settings = item.config.stash[SETTINGS]
    name = item.stash.get(NAME, item.nodeid)
    collector = Collector(
        test=name,
        here=_from_here(item.config, name),
        resolve=partial(_limits, item),
        seed=settings.seed,
        device=settings.device,
        is_report_only=settings.is_report_only,
        on_result=partial(_finished, item),
        progress=_progress(item.config),
    )
    item.stash[COLLECTOR] = collector
    with Collecting(collector):
        return (yield)


def _from_here(config: pytest.Config, name: str) -> str:
    """A node id as pytest takes it in the directory where it was started."""
    path, colons, rest = name.partition("::")
    start = config.invocation_params.dir
    if not path or start == config.rootpath:
        return name
    try:
        there = os.path.relpath(config.rootpath / path, start)
    except ValueError:  # on another drive
        return name
    return f"{there.replace(os.sep, '/')}{colons}{rest}"


def _progress(config: pytest.Config) -> Progress | None:
    if PROGRESS not in config.stash:  # when the terminal is there, once for all tests
        config.stash[PROGRESS] = on_terminal(config)
    return config.stash[PROGRESS]


def _finished(item: pytest.Item, result: Result) -> None:
    guarded(item.ihook.pytest_gradcheck_finished, item=item, result=result)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start counting anew for each attempt, and refuse a marker that is used wrongly.

    The limits themselves wait until a check asks for them: most tests of a suite never do.
    """
    collector = item.stash[COLLECTOR]
    collector.checked.clear()
    misuse = ""
    try:
        for verb in VERBS:
            if item.get_closest_marker(verb) is not None:
                collector.limits_for(verb)
    except UsageError as error:
        misuse = str(error)
    if misuse:
        pytest.fail(misuse, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """See, after the test, that a marked test checked something."""
    answer = yield
    collector = item.stash[COLLECTOR]
    for verb, check in VERBS.items():
        if check not in collector.checked and markers.is_marked_by_user(item, verb):
            _vacuous(item, verb, collector)
    return answer


def _limits(item: pytest.Item, verb: str) -> Limits:
    limits = item.config.stash[SETTINGS].limits[verb]
    changed = guarded(item.ihook.pytest_gradcheck_limits, item=item, check=verb, limits=limits)
    if changed:
        limits = limits.narrowed("hook", "pytest_gradcheck_limits", changed)
    return markers.narrowed(item, verb, limits)


def _vacuous(item: pytest.Item, verb: str, collector: Collector) -> None:
    from pytest_gradcheck.results import Context, Finding, Result
    from pytest_gradcheck.verbs.record import raise_for

    headline = f"vacuous: the test is marked {verb}, and nothing was checked in it"
    result = Result(
        check=VERBS[verb],
        label=item.name,
        verdict="vacuous",
        headline=headline,
        findings=(Finding(code="nothing-checked", severity="fail", message=headline),),
        limits=collector.limits_for(verb).used("float64"),
        context=Context(test=collector.test, seed=collector.test_seed()),
        advice=(
            f"use the fixture {verb} or assert_{VERBS[verb]} in the test, or remove the marker",
        ),
    )
    collector.add(result)
    failure = ""
    try:
        raise_for(result)
    except GradCheckError as error:
        failure = str(error)
    if failure:  # no traceback: there is no line of the user's to show
        pytest.fail(failure, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, Any, Any]:
    """Put the results of a phase, as plain builtins, on its report."""
    report = yield
    crash = getattr(report.longrepr, "reprcrash", None)
    if (
        crash is not None
        and call.excinfo is not None
        and call.excinfo.errisinstance(GradCheckError)
    ):
        crash.message = str(call.excinfo.value)  # its name alone would fill the short summary
    collector = item.stash.get(COLLECTOR, None)
    if collector is None:  # a phase that was never opened
        return report
    fresh = collector.take()
    attempt = getattr(item, "execution_count", 1)  # of pytest-rerunfailures
    # A later attempt replaces what earlier ones found, also when it found nothing itself.
    if fresh or (attempt > 1 and report.when == "call"):
        report.gradcheck = {
            "test": collector.test,
            "attempt": attempt,
            "results": [result.to_plain() for result in fresh],
        }
    return report
