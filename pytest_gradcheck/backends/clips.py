"""What clips gradients, as the checks see it, and how a callable is told which one it is.

A clip is given gradients as NumPy arrays of float64 and a precision; what it saw and what it made
of them come back as float64, exactly, since every precision below is contained in it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from pytest_gradcheck.backends.clip_signatures import signature
from pytest_gradcheck.backends.reach import attributes_of, names_of, reachable
from pytest_gradcheck.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

PARAMETERS = ("params", "parameters")  # how it calls those; what takes gradients says so
GRADIENTS = ("grads", "gradients", "grad", "gradient", "gs", "g", "updates", "grad_list")
MODULES = ("model", "module", "net", "network")  # what a clip calls one that it takes
NAMED = ("named_parameters", "named_params")  # pairs of a name and a parameter
OPTIMIZERS = ("optimizer", "optim", "opt")  # what one calls an optimizer, over its parameters
_FRAMEWORKS = {
    "torch": ("torch", "lightning", "pytorch_lightning", "accelerate", "transformers"),
    "jax": ("jax", "optax", "flax", "equinox"),
    "numpy": ("numpy",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """One call of a clip.

    Args:
        before: The gradients as the clip got them; None where a parameter has none.
        after: What it made of them.
        returned: The number that it returned, None where it returned none.
        error: What it raised, in words; empty where nothing.
        lost: How many gradients it gave back, in words, where it got another number of them.
    """

    before: tuple[np.ndarray | None, ...]
    after: tuple[np.ndarray | None, ...] = ()
    returned: float | None = None
    error: str = ""
    lost: str = ""


class Clipper(Protocol):
    """Something that clips.

    ``shapes`` are those of the gradients it is given, ``names`` their paths, ``dtype`` the
    precision it is used in, empty where nobody said; ``settings`` are the roles (``norm``,
    ``value``, ``kind``, ``algorithm``) that a call can set; ``is_quirky`` says whether 0/0 at a
    threshold of zero is a known trait of its library, ``has_gaps`` whether a parameter may have no
    gradient.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    dtype: str
    settings: frozenset[str]
    is_quirky: bool
    has_gaps: bool

    def parameters(self) -> tuple[np.ndarray, ...]:
        """The parameters that the gradients belong to."""

    def clip(
        self, gradients: Sequence[np.ndarray | None], dtype: str, settings: Mapping[str, Any]
    ) -> Clipped:
        """Clip, in a precision, with the settings (by role) that it takes."""


def find(clip: Any, params: Any, backend: str | None) -> str:
    """Name of the backend that a clip belongs to.

    Raises:
        UsageError: ``backend`` is not one that has clips.
    """
    if backend is not None:
        if backend not in _FRAMEWORKS:
            raise UsageError(f"backend={backend!r} has no clips; known: {', '.join(_FRAMEWORKS)}")
        return backend
    seen = {_home(clip)}
    for root in (params, clip):
        for value in reachable([root], depth=3):
            seen |= {_home(value), *_modules(value)}
    found = next((name for name, tops in _FRAMEWORKS.items() if seen & set(tops)), "")
    if found in ("numpy", "") and (_means_torch(clip) or (not found and _names_torch(clip))):
        return "torch"
    return found or "numpy"


def _means_torch(clip: Any) -> bool:
    """Whether a clip by hand takes a model, or uses what arrays lack: ``.grad``, ``mul_``."""
    if importlib.util.find_spec("torch") is None:
        return False
    names = read_by(clip)
    reads = any(name in ("grad", "param_groups") or (name[-1] == "_" != name[0]) for name in names)
    return reads or bool(set(signature(clip).free[:1]) & {*MODULES, *OPTIMIZERS, *NAMED})


def read_by(clip: Any) -> tuple[str, ...]:
    """Names of attributes that the code of a clip reads; none where it has none to look at."""
    while isinstance(clip, functools.partial):
        clip = clip.func
    own = clip if hasattr(clip, "__code__") else inspect.getattr_static(type(clip), "__call__", 0)
    code = getattr(own, "__code__", None)
    return tuple(attributes_of(code)) if code is not None else ()


def _names_torch(clip: Any) -> bool:
    """Whether a clip of no known framework calls what it takes parameters, where torch is used."""
    return "torch" in sys.modules and bool(set(signature(clip).free[:1]) & set(PARAMETERS))


def _home(value: Any) -> str:
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


def _modules(value: Any) -> set[str]:
    code, names = getattr(value, "__code__", None), getattr(value, "__globals__", {})
    cells = [
        cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _full(cell)
    ]
    found = [names[n] for n in (names_of(code) if code else ()) if n in names]
    return {v.__name__.partition(".")[0] for v in (*found, *cells) if isinstance(v, ModuleType)}


def _full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is bound later
        return False


def load(name: str, clip: Any, params: Any, shapes: tuple[tuple[int, ...], ...]) -> Clipper:
    """The clipper of a backend, imported now.

    Raises:
        UsageError: Its framework is not installed, or the clip cannot be called.
    """
    try:
        module = importlib.import_module(f"pytest_gradcheck.backends.{name}_clips")
    except ModuleNotFoundError as error:
        raise UsageError(f"backend={name!r} needs {error.name}, which is not installed") from error
    made: Clipper = module.clipper(clip, params, shapes)
    return made
