"""The session: settings, third-party backends, and the gathering of results where they end.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from pytest_gradcheck import hookspecs
from pytest_gradcheck.limits import VERBS
from pytest_gradcheck.plugin import markers
from pytest_gradcheck.plugin.options import Settings, settings

SETTINGS = pytest.StashKey[Settings]()
BACKENDS = pytest.StashKey[list[Any]]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks that third parties implement."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Resolve settings, register markers and backends; gather results where they end up."""
    for verb in VERBS:
        config.addinivalue_line("markers", markers.line(verb))
    config.stash[SETTINGS] = settings(config)
    offered = config.stash[BACKENDS] = _offered(config)
    if offered:
        from pytest_gradcheck import backends

        backends.register(offered)
    if not hasattr(config, "workerinput"):  # a worker of xdist writes and prints nothing
        from pytest_gradcheck.plugin.gather import Gatherer

        config.pluginmanager.register(Gatherer(config), "gradcheck-gatherer")


def _offered(config: pytest.Config) -> list[Any]:
    try:
        answers = guarded(config.hook.pytest_gradcheck_backends)
    except RuntimeError as error:  # a hook of somebody else's, named in the message
        raise pytest.UsageError(f"pytest-gradcheck: {error}") from error
    return [entry for entries in answers for entry in entries]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take third-party backends out again."""
    offered = config.stash.get(BACKENDS, [])
    if offered:
        from pytest_gradcheck import backends

        backends.unregister(offered)


def guarded(hook: Any, **arguments: Any) -> Any:
    """Call a hook of third parties; what it raises names the plugin.

    Raises:
        RuntimeError: A plugin's implementation raised; chained to what it raised.
    """
    try:
        return hook(**arguments)
    except Exception as error:  # the one place: whatever somebody else's code raises
        names = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        culprits = [
            impl.plugin_name
            for impl in hook.get_hookimpls()
            if getattr(impl.function, "__code__", None) is not None
            and impl.function.__code__.co_filename in names
        ]
        raise RuntimeError(
            f"{hook.name} of plugin {', '.join(culprits) or 'unknown'} raised "
            f"{type(error).__name__}: {error}"
        ) from error
