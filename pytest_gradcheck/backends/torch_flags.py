"""PyTorch's global flags: held for the time of a check; in what precision products are computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

# Where torch keeps the precision of products of float32 numbers (since torch 2.9), and the older
# flags for the same, which raise where both were used.
PLACES = (
    "",
    "cuda.matmul",
    "cudnn",
    "cudnn.conv",
    "cudnn.rnn",
    "mkldnn",
    "mkldnn.matmul",
    "mkldnn.conv",
    "mkldnn.rnn",
)
_NAMES = {"tf32": "tensorfloat32", "bf16": "bfloat16"}


class Flags:
    """Flags that a function may set: kept like a generator, set back before every run."""

    draws = False

    def get(self) -> Any:
        """The flags now."""
        return (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            torch.is_anomaly_enabled(),
            torch.backends.cudnn.benchmark,
            _older(),
            _newer(),
        )

    def has_moved(self, state: Any) -> bool:
        """Whether the state is another one now."""
        return bool(state != self.get())

    def set(self, state: Any) -> None:
        """Make ``state`` the state."""
        if not self.has_moved(state):
            return
        dtype, grad, (deterministic, warn_only), anomaly, benchmark, older, newer = state
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if anomaly != torch.is_anomaly_enabled():
            torch.autograd.set_detect_anomaly(anomaly)
        if benchmark != torch.backends.cudnn.benchmark:  # which torch can be told to freeze
            torch.backends.cudnn.benchmark = benchmark
        if (older, newer) != (_older(), _newer()):
            _set_products(older, newer)


def _older() -> tuple[str, bool] | None:
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the newer settings were used, and the older ones cannot tell them
        return None


@functools.cache
def _holders() -> dict[str, Any]:
    """The objects that hold the newer settings; none in a torch that does not have them."""
    found: dict[str, Any] = {}
    for place in PLACES:
        try:
            holder = attrgetter(place)(torch.backends) if place else torch.backends
            holder.fp32_precision  # noqa: B018  # asked for to see that it is there
        except AttributeError:
            continue
        found[place] = holder
    return found


def _newer() -> dict[str, str]:
    return {place: holder.fp32_precision for place, holder in _holders().items()}


def _set_products(older: tuple[str, bool] | None, newer: dict[str, str]) -> None:
    if older is not None:  # first: it writes some of the newer ones too
        torch.set_float32_matmul_precision(older[0])
        torch.backends.cudnn.allow_tf32 = older[1]
    for place, holder in _holders().items():
        if holder.fp32_precision != newer[place]:
            holder.fp32_precision = newer[place]


def rounds(device: str) -> bool:
    """Whether products of float32 numbers may be rounded to less on a kind of device."""
    return any(_NAMES.get(_setting(kind, device), "") for kind in _KINDS)


@contextmanager
def exact() -> Iterator[None]:
    """Products of float32 numbers in full for a while."""
    older, newer = _older(), _newer()
    try:
        if newer:
            _set_products(None, {p: "ieee" if "." in p else now for p, now in newer.items()})
        else:
            _set_products(("highest", False), {})
        yield
    finally:
        _set_products(older, newer)


def products(operation: str, x: Tensor) -> str:
    """The precision in which torch multiplies matrices of float32 numbers like ``x``.

    Args:
        operation: Name of an operation, such as ``addmm`` or ``convolution``.
        x: One of its arguments.

    Returns:
        ``tensorfloat32``, ``bfloat16``, or empty where it is that of ``x``.
    """
    if x.dtype not in (torch.float32, torch.complex64):
        return ""
    kind = next((k for k, words in _KINDS.items() if any(w in operation for w in words)), "")
    return _NAMES.get(_setting(kind, x.device.type), "") if kind else ""


_KINDS = {
    "conv": ("conv",),
    "rnn": ("rnn", "lstm", "gru"),
    "matmul": ("mm", "matmul", "addmv", "linear", "bilinear", "attention", "dot"),
}


def _setting(kind: str, device: str) -> str:
    newer = _newer()
    if newer:
        family = "cudnn" if kind != "matmul" else "cuda"
        place = f"{family if device == 'cuda' else 'mkldnn'}.{kind}"
        return newer.get(place, "") if device in ("cuda", "cpu") else ""
    return _older_setting(kind, device)


def _older_setting(kind: str, device: str) -> str:
    medium = torch.get_float32_matmul_precision() == "medium"
    allowed: dict[tuple[str, bool], Callable[[], str]] = {
        ("cuda", True): lambda: "tf32" if torch.backends.cuda.matmul.allow_tf32 else "",
        ("cuda", False): lambda: "tf32" if torch.backends.cudnn.allow_tf32 else "",
        ("cpu", True): lambda: "bf16" if medium else "",
    }
    return allowed.get((device, kind == "matmul"), str)()
