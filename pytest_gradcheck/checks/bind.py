"""From a call to a problem: find the backend, take values apart, select by ``wrt``."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from types import FunctionType
from typing import Any

from pytest_gradcheck import backends
from pytest_gradcheck.backends import Backend, Flat, Leaf, tree
from pytest_gradcheck.checks.problem import Call, Problem, kind_of, label_of
from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.numerics.precision import coarsest

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

Wrt = int | str | Sequence[int | str] | None


def bind(
    fn: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    wrt: Wrt = None,
    backend: str | None = None,
    device: str | None = None,
) -> Problem:
    """Find the backend, take function and arguments apart, select what is under test.

    Raises:
        UsageError: Not callable, mixed frameworks, unknown ``wrt``, nothing differentiable.
    """
    if not callable(fn) and not hasattr(fn, "apply"):
        raise UsageError(f"the first argument must be a function or a module, got {kind_of(fn)}")
    _require_instance(fn)
    names = _argument_names(fn, args)
    arguments = dict(zip(names, args, strict=True)) | dict(kwargs)
    engine = backends.load(backend or _backend_of(fn, arguments))
    module = engine.flatten(fn)
    parts = {name: engine.flatten(value) for name, value in arguments.items()}
    leaves, groups = _collect(module, parts)
    selected = _select(engine, leaves, groups, names, wrt, fn)
    leaves = [_copied(engine, leaf, device) for leaf in leaves]
    return Problem(
        backend=engine,
        label=label_of(fn),
        leaves=tuple(leaves),
        selected=tuple(selected),
        rebuild=_rebuilder(module, parts, len(args)),
        groups=tuple(groups),
    )


def _require_instance(fn: Any) -> None:
    """Refuse a class of modules or of custom functions in the place of what it makes.

    Raises:
        UsageError: Says what to give.
    """
    if not isinstance(fn, type):
        return
    name, bases = fn.__name__, {base.__name__ for base in fn.__mro__}
    if callable(getattr(fn, "apply", None)) and "Function" in bases:
        raise UsageError(f"{name} is a custom autograd function: give {name}.apply")
    if "Module" in bases:
        raise UsageError(f"{name} is a class of modules: give one of them, {name}(...)")


def _argument_names(fn: Any, args: tuple[Any, ...]) -> list[str]:
    if type(fn) is FunctionType and not vars(fn):  # inspect takes ten times as long
        plain = list(fn.__code__.co_varnames[: fn.__code__.co_argcount])
    else:
        plain = _positional(fn)
    return [plain[i] if i < len(plain) else f"args.{i}" for i in range(len(args))]


def _positional(fn: Any) -> list[str]:
    """Names of the positional parameters."""
    try:
        parameters = list(inspect.signature(_signed(fn)).parameters.values())
    except (TypeError, ValueError):  # built-in functions have no signature
        parameters = []
    if _is_applied(fn) and _takes_context(fn.__self__):
        parameters = parameters[1:]
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _signed(fn: Any) -> Any:
    """What carries the names of the arguments: the forward of a module or of a custom function."""
    return fn.__self__.forward if _is_applied(fn) else getattr(fn, "forward", fn)


def _is_applied(fn: Any) -> bool:
    owner = getattr(fn, "__self__", None)
    return isinstance(owner, type) and hasattr(owner, "forward")


def _takes_context(function: type) -> bool:
    """Whether the forward of a custom autograd function begins with its context.

    It does unless ``setup_context`` is there to take it.
    """
    own = [part for part in function.__mro__ if not part.__module__.startswith("torch.")]
    return not any("setup_context" in vars(part) for part in own)


def _backend_of(fn: Any, arguments: Mapping[str, Any]) -> str:
    owners: dict[str, str] = {}
    for name, value in {"": fn, **arguments}.items():
        for leaf in tree.flatten(value, Leaf, lambda node: None).leaves:
            owner = _owner_of_array(leaf.value)
            if owner is not None:
                owners.setdefault(owner, tree.join(name, leaf.path) or "the function")
    if "jax" in owners:
        owners.pop("numpy", None)  # JAX takes NumPy arrays as its own
    if len(owners) > 1:
        found = ", ".join(f"{where} is {owner}" for owner, where in owners.items())
        raise UsageError(
            f"the inputs mix frameworks: {found}; convert them to one, or name the one to "
            f"differentiate with backend= (the others then pass through as constants)"
        )
    return next(iter(owners), "numpy")


def _owner_of_array(value: Any) -> str | None:
    owner = backends.owner(value)
    if owner == "numpy" and (not getattr(value, "ndim", 0) or value.dtype.kind not in "fc"):
        return None  # NumPy scalars and integers go with every framework
    return owner


def _collect(module: Flat, parts: Mapping[str, Flat]) -> tuple[list[Leaf], list[str]]:
    leaves, groups = list(module.leaves), [""] * len(module.leaves)
    taken = {leaf.path for leaf in leaves if module.is_module}
    for name, flat in parts.items():
        for leaf in flat.leaves:
            path = tree.join(name, leaf.path)
            path = f"args.{path}" if path in taken else path
            leaves.append(replace(leaf, path=path))
            groups.append(name)
    return leaves, groups


def _rebuilder(
    module: Flat, parts: Mapping[str, Flat], positional: int
) -> Callable[[Sequence[Any]], Call]:
    first = len(module.leaves)
    flats, names = list(parts.values()), list(parts)[positional:]
    ends = list(accumulate((len(flat.leaves) for flat in flats), initial=first))
    spans = [slice(*pair) for pair in pairwise(ends)]

    def rebuild(values: Sequence[Any]) -> Call:
        fn = module.rebuild(values[:first])
        built = [flat.rebuild(values[span]) for flat, span in zip(flats, spans, strict=True)]
        named = dict(zip(names, built[positional:], strict=True))
        return Call(fn, tuple(built[:positional]), named)

    return rebuild


def _copied(engine: Backend, leaf: Leaf, device: str | None) -> Leaf:
    if not leaf.dtype and backends.owner(leaf.value) != engine.name:
        return leaf
    if not hasattr(leaf.value, "shape"):  # a module or a type of the framework
        return leaf
    try:
        copy = engine.convert(leaf.value, device=device or "")
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # of the framework
        where = f" to device {device}" if device else ""
        raise UsageError(f"input {leaf.path} cannot be copied{where}: {error}") from error
    return replace(leaf, value=copy, device=str(getattr(copy, "device", "") or leaf.device))


def _select(
    engine: Backend,
    leaves: list[Leaf],
    groups: list[str],
    positional: list[str],
    wrt: Wrt,
    fn: Any,
) -> list[int]:
    if not any(leaf.dtype and leaf.trainable for leaf in leaves):
        _adopt_numbers(engine, leaves)
    usable = [i for i, leaf in enumerate(leaves) if leaf.dtype and leaf.size and leaf.trainable]
    if wrt is None:
        chosen = usable
    else:
        wanted = tuple(wrt) if isinstance(wrt, (list, tuple, set, frozenset)) else (wrt,)
        found = [(w, _matches(w, leaves, groups, positional)) for w in wanted]
        for name, indices in found:
            _take_named(engine, name, indices, leaves, groups)
        chosen = sorted({i for _, indices in found for i in indices})
        chosen = [i for i in chosen if leaves[i].dtype and leaves[i].size]
    if not chosen:
        raise UsageError(_nothing(leaves, fn))
    return chosen


def _adopt_numbers(engine: Backend, leaves: list[Leaf]) -> None:
    # Python floats are settings beside an array, but the variables where there is no array.
    for i, leaf in enumerate(leaves):
        if type(leaf.value) in (float, complex):
            array = engine.flatten(engine.convert(leaf.value)).leaves[0]
            leaves[i] = replace(array, path=leaf.path)


def _take_named(
    engine: Backend, wanted: object, indices: list[int], leaves: list[Leaf], groups: list[str]
) -> None:
    """Make arrays of the numbers that ``wrt`` names; what a glob finds beside arrays is no name.

    Raises:
        UsageError: What is named has no derivative.
    """
    named = [i for i in indices if isinstance(wanted, int) or not _is_glob(wanted, leaves[i])]
    arrays = [leaf.dtype for leaf in leaves if leaf.dtype]
    for i in named:
        value, path = leaves[i].value, leaves[i].path
        if type(value) in (float, complex):
            if engine.name == "torch":
                raise UsageError(
                    f"wrt={wanted!r}: {path} is a Python {kind_of(value)}; "
                    f"pass torch.tensor({value!r})"
                )
            # Beside arrays a Python float takes their precision.
            dtype = coarsest(arrays) if arrays and type(value) is float else ""
            array = engine.flatten(engine.convert(value, dtype)).leaves[0]
            leaves[i] = replace(array, path=path)
        elif not leaves[i].dtype and path in (wanted, groups[i]):
            raise UsageError(
                f"wrt={wanted!r}: {path} ({kind_of(value)}) has no derivative; give a "
                f"floating-point array or number"
            )


def _is_glob(wanted: object, leaf: Leaf) -> bool:
    name = str(wanted)
    return leaf.path != name and not leaf.path.startswith(name + ".")


def _matches(
    wanted: object, leaves: list[Leaf], groups: list[str], positional: list[str]
) -> list[int]:
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not -len(positional) <= wanted < len(positional):
            raise UsageError(
                f"wrt={wanted} is not a position; there are {len(positional)} positional arguments"
            )
        return [i for i, group in enumerate(groups) if group == positional[wanted]]
    if not isinstance(wanted, str):
        raise UsageError(f"wrt takes positions and names, got {kind_of(wanted)}")
    found = [
        i
        for i, leaf in enumerate(leaves)
        if leaf.path == wanted
        or leaf.path.startswith(wanted + ".")
        or fnmatch.fnmatchcase(leaf.path, wanted)
    ]
    if not found:
        paths = [leaf.path for leaf in leaves if leaf.dtype]
        listed = ", ".join(paths[:20]) + (", …" if len(paths) > 20 else "")
        raise UsageError(f"wrt={wanted!r} names no input; the differentiable inputs are: {listed}")
    return found


def _nothing(leaves: list[Leaf], fn: Any) -> str:
    empty = [leaf.path for leaf in leaves if leaf.dtype and not leaf.size]
    frozen = [leaf.path for leaf in leaves if leaf.dtype and not leaf.trainable]
    given = ", ".join(f"{leaf.path} ({kind_of(leaf.value)})" for leaf in leaves if leaf.path)
    text = f"nothing differentiable among the inputs of {label_of(fn)}: "
    if empty:
        return text + f"{', '.join(empty)} has no elements; give an array with at least one"
    if frozen:
        return (
            text + f"no trainable parameter (frozen: {', '.join(frozen[:5])}) and no "
            f"floating-point input; unfreeze one or name it with wrt="
        )
    if not given:
        return text + "it was given none; pass its inputs after the function"
    return text + f"got {given}; give floating-point arrays, such as x.float() or x.astype(float)"
