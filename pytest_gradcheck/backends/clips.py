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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from pytest_gradcheck.backends.reach import attributes_of, names_of, reachable
from pytest_gradcheck.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# How those who write clips call the threshold of a norm, that of a value, and the norm itself.
NORMS = ("max_norm", "clip_norm", "threshold", "max_grad_norm", "l2_norm_clip", "clipping")
VALUES = ("clip_value", "clip_val", "max_value", "max_delta")
KINDS = ("norm_type", "p", "ord")
THRESHOLDS = ("norm", "value")
PARAMETERS = ("params", "parameters")  # how it calls those; what takes gradients says so
MODULES = ("model", "module", "net", "network")  # what a clip calls one that it takes
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
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
    """

    before: tuple[np.ndarray | None, ...]
    after: tuple[np.ndarray | None, ...] = ()
    returned: float | None = None
    error: str = ""


class Clipper(Protocol):
    """Something that clips.

    ``shapes`` are those of the gradients it is given, ``names`` their paths, ``dtype`` the
    precision it is used in, empty where nobody said; ``settings`` are the roles (``norm``,
    ``value``, ``kind``) that a call can set; ``is_quirky`` says whether 0/0 at a threshold of zero
    is a known trait of its library.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    dtype: str
    settings: frozenset[str]
    is_quirky: bool

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
    while isinstance(clip, functools.partial):
        clip = clip.func
    own = clip if hasattr(clip, "__code__") else inspect.getattr_static(type(clip), "__call__", 0)
    code = getattr(own, "__code__", None)
    names = attributes_of(code) if code is not None else ()
    reads = any(name == "grad" or (name[-1] == "_" != name[0]) for name in names)
    return reads or bool(set(signature(clip).free[:1]) & set(MODULES))


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


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """The parameters of a callable by their role.

    Args:
        free: Names of positional parameters that must be given and have no role.
        roles: Name of the parameter for each role: ``norm``, ``value``, ``kind``.
        is_factory: Whether it makes a clip from a threshold alone.
    """

    free: tuple[str, ...]
    roles: Mapping[str, str]
    is_factory: bool

    @property
    def settings(self) -> frozenset[str]:
        """The roles that it takes."""
        return frozenset(r for r in (*THRESHOLDS, "kind") if self._role(r) in self.roles)

    def keywords(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings under the names that the callable has for them.

        One that has a name for one kind of threshold alone takes the other kind by it.
        """
        known = {role: self._role(role) for role in settings}
        return {self.roles[own]: settings[role] for role, own in known.items() if own in self.roles}

    def _role(self, role: str) -> str:
        if role in self.roles or role not in THRESHOLDS:
            return role
        return next((other for other in THRESHOLDS if other in self.roles), role)


def _is_only(parameters: Mapping[str, inspect.Parameter], name: str) -> bool:
    """Whether a parameter is the first, and the only one that must be given."""
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in _REST]
    return needed == [name] and next(iter(parameters)) == name


def signature(clip: Callable[..., Any]) -> Signature:
    """What a callable takes; one free parameter where it cannot be read."""
    try:
        parameters = inspect.signature(clip).parameters
    except (TypeError, ValueError):
        return Signature(("gradients",), {}, False)
    roles = {}
    for role, known in (("norm", NORMS), ("value", VALUES), ("kind", KINDS)):
        name = next((n for n in parameters if n in known), None)
        if name is not None:
            roles[role] = name
    if roles.get("kind") == "p" and _is_only(parameters, "p"):
        del roles["kind"]  # the parameters, and no order of a norm
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    free = tuple(
        name
        for name, p in parameters.items()
        if p.kind in positional and p.default is p.empty and name not in roles.values()
    )
    first = next(iter(parameters), "")
    is_factory = not free and first in (roles.get("norm"), roles.get("value"))
    return Signature(
        free, roles, is_factory and parameters[first].default is inspect.Parameter.empty
    )
