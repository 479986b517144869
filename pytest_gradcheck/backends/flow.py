"""The probe of a model by the name of its backend, imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pytest_gradcheck.backends.probes import Probe
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

_PROBES = {
    "torch": "pytest_gradcheck.backends.torch_probe:TorchProbe",
    "jax": "pytest_gradcheck.backends.jax_probe:JaxProbe",
    "numpy": "pytest_gradcheck.backends.numpy_probe:NumpyProbe",
}


def probe_of(name: str) -> Callable[..., Probe]:
    """What makes the probe of a backend.

    Raises:
        UsageError: The backend has none, or its framework is not installed.
    """
    if name not in _PROBES:
        raise UsageError(f"backend={name!r} is not known; known: {', '.join(_PROBES)}")
    module, _, attribute = _PROBES[name].partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"backend={name!r} needs {error.name}, which is not installed: "
            f"pip install 'pytest-gradcheck[{name}]'"
        ) from error
    return found  # type: ignore[no-any-return]  # by the table
