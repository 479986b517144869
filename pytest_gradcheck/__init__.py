"""Gradient diagnostics for pytest: are the derivatives right?

The names below are resolved on first use: importing the package loads no framework and no NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gradcheck.backends.lightning import lightning_training
    from pytest_gradcheck.backends.steps import Training
    from pytest_gradcheck.backends.trainer import trainer_training
    from pytest_gradcheck.errors import GradCheckError, GradCheckWarning, UsageError
    from pytest_gradcheck.results import Evidence, Finding, Result
    from pytest_gradcheck.verbs.clipping import assert_clipping, check_clipping
    from pytest_gradcheck.verbs.flow import assert_flow, check_flow
    from pytest_gradcheck.verbs.gradient import assert_gradient, check_gradient
    from pytest_gradcheck.verbs.step import assert_step, check_step

__all__ = [
    "Evidence",
    "Finding",
    "GradCheckError",
    "GradCheckWarning",
    "Result",
    "Training",
    "UsageError",
    "assert_clipping",
    "assert_flow",
    "assert_gradient",
    "assert_step",
    "check_clipping",
    "check_flow",
    "check_gradient",
    "check_step",
    "lightning_training",
    "trainer_training",
]

_HOMES = {
    "Evidence": "results",
    "Finding": "results",
    "GradCheckError": "errors",
    "GradCheckWarning": "errors",
    "Result": "results",
    "Training": "backends.steps",
    "UsageError": "errors",
    "assert_clipping": "verbs.clipping",
    "assert_flow": "verbs.flow",
    "assert_gradient": "verbs.gradient",
    "assert_step": "verbs.step",
    "check_clipping": "verbs.clipping",
    "check_flow": "verbs.flow",
    "check_gradient": "verbs.gradient",
    "check_step": "verbs.step",
    "lightning_training": "backends.lightning",
    "trainer_training": "backends.trainer",
}


def __getattr__(name: str) -> Any:  # Any: every public name
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("pytest-gradcheck")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
