"""What a clip takes: which of its arguments is the threshold, and which are the gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# How those who write clips call the threshold of a norm, that of a value, the order of the norm,
# and which of both is clipped; in small letters and without underscores.
ROLES = {
    "norm": (
        *("maxnorm", "clipnorm", "threshold", "maxgradnorm", "l2normclip", "clipping", "theta"),
        *("gradclip", "gradclipnorm", "gradclipval", "gradientclipval", "globalclipnorm"),
        *("clipfactor", "clipthreshold", "maxgradientnorm", "limit"),
    ),
    "value": ("clipvalue", "clipval", "maxvalue", "maxval", "maxdelta", "maxabs", "gradclipvalue"),
    "kind": ("normtype", "p", "ord"),
    "algorithm": ("gradientclipalgorithm",),
}
THRESHOLDS = ("norm", "value")
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """The parameters of a callable by their role.

    Args:
        free: Names of parameters that must be given and have no role.
        roles: Name of the parameter for each role: ``norm``, ``value``, ``kind``, ``algorithm``.
        is_factory: Whether it makes a clip from a threshold alone.
        is_behind: Whether what must be given does not stand first, so that it goes by its name.
    """

    free: tuple[str, ...]
    roles: Mapping[str, str]
    is_factory: bool = False
    is_behind: bool = False

    @property
    def settings(self) -> frozenset[str]:
        """The roles that it takes."""
        return frozenset(role for role in ROLES if self._role(role) in self.roles)

    def keywords(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings under the names that the callable has for them.

        One that has a name for one kind of threshold alone takes the other kind by it.
        """
        known = {role: self._role(role) for role in settings}
        return {self.roles[own]: settings[role] for role, own in known.items() if own in self.roles}

    def called(self, clip: Callable[..., Any], handed: Any, keywords: Mapping[str, Any]) -> Any:
        """What the clip returns for the one thing that it must be given."""
        if self.is_behind:
            return clip(**{self.free[0]: handed}, **keywords)
        return clip(handed, **keywords)

    def require_one(self, what: str) -> None:
        """See that one thing must be given.

        Raises:
            UsageError: Nothing must be, or more.
        """
        if len(self.free) == 1:
            return
        if self.is_factory:
            raise UsageError("the clip takes a threshold alone: hand over what it makes of that")
        taken = ", ".join(self.free) or f"no {what} as an argument of its own"
        raise UsageError(
            f"the clip takes {taken}; allowed: one argument, the {what}, beside a threshold "
            f"(max_norm or clip_value) and norm_type; hand over a lambda that gives the others"
        )

    def _role(self, role: str) -> str:
        if role in self.roles or role not in THRESHOLDS:
            return role
        return next((other for other in THRESHOLDS if other in self.roles), role)


def signature(clip: Callable[..., Any]) -> Signature:
    """What a callable takes; one free parameter where it cannot be read."""
    try:
        parameters = inspect.signature(clip).parameters
    except (TypeError, ValueError):
        return Signature(("gradients",), {})
    roles = {role: name for role in ROLES if (name := _named(parameters, role))}
    if roles.get("kind") == "p" and _is_only(parameters, "p"):
        del roles["kind"]  # the parameters, and no order of a norm
    needed = [n for n in _needed(parameters) if n not in roles.values()]
    first = next(iter(parameters), "")
    is_factory = not needed and first in (roles.get("norm"), roles.get("value"))
    return Signature(
        free=tuple(needed),
        roles=roles,
        is_factory=is_factory and parameters[first].default is inspect.Parameter.empty,
        is_behind=bool(needed)
        and (needed[0] != first or parameters[first].kind not in _POSITIONAL),
    )


def _named(parameters: Mapping[str, inspect.Parameter], role: str) -> str:
    names = (n for n in parameters if n.lower().replace("_", "") in ROLES[role])
    return next(names, "")


def _needed(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [n for n, p in parameters.items() if p.default is p.empty and p.kind not in _REST]


def _is_only(parameters: Mapping[str, inspect.Parameter], name: str) -> bool:
    """Whether a parameter is the first, and the only one that must be given."""
    return _needed(parameters) == [name] and next(iter(parameters)) == name
