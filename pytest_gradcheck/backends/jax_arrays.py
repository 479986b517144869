"""Where JAX arrays live during a check: on the CPU as NumPy arrays, elsewhere on their device.

JAX compiles even ``x + v`` anew for each shape and precision, some 15 ms each time, which is more
than a small function costs. So points, directions and inner products of arrays on the default CPU
device are left to NumPy, and JAX arrays are made of them where the user's own code gets them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.experimental
import numpy as np

from pytest_gradcheck.backends.protocol import Array
from pytest_gradcheck.errors import UsageError

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these

# Older releases have the switch of 64-bit mode among the experiments.
enable_x64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

WIDE = {"float64", "complex128"}
# NumPy turns bfloat16 times a Python number into float32; what it computes itself it keeps.
_KEPT = {"float16", "float32", "float64", "complex64", "complex128"}
# Before NumPy 2 a float32 number times a Python number was a float64 number.
_KEEPS_SCALARS = int(np.__version__.partition(".")[0]) >= 2


def can_host(x: Any) -> bool:
    """Whether NumPy may stand in for an array: it lies where JAX puts new arrays, on the CPU."""
    if not _is_numpy(x) and not _is_at_home(x):
        return False
    return _is_cpu_home() and _can_keep(x, str(x.dtype))


def _can_keep(x: Any, dtype: str) -> bool:
    return dtype in _KEPT and (_KEEPS_SCALARS or x.ndim > 0)


def _is_numpy(x: Any) -> bool:
    return isinstance(x, (np.ndarray, np.generic))


def _is_cpu_home() -> bool:
    """Whether new arrays go to the CPU, and nobody said anything else."""
    return jax.config.jax_default_device is None and jax.default_backend() == "cpu"


def _is_at_home(x: Any) -> bool:
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer) or not _is_cpu_home():
        return False
    is_plain = isinstance(x.dtype, np.dtype)  # and no random key
    return is_plain and bool(x.devices() == {jax.local_devices()[0]})


def hosted(x: Any) -> Any:
    """A CPU array as a NumPy array that shares its memory; anything else as it is."""
    return np.asarray(x) if can_host(x) else x


def handed(x: Any) -> Any:
    """A NumPy array as a JAX array with a buffer of its own; anything else as it is."""
    # A buffer of its own, since the user's function may donate what it is given.
    return jax.numpy.array(x) if _is_numpy(x) else x


def copied(x: Any, dtype: str) -> Array:
    """A copy in the same place, in a precision where named, in 64-bit mode where that needs it."""
    x = np.asarray(x) if _is_at_home(x) else x
    if _is_numpy(x) and _is_cpu_home() and _can_keep(x, dtype or str(x.dtype)):
        return np.array(x, dtype=dtype or None)
    wide = dtype in WIDE or str(getattr(x, "dtype", "")) in WIDE
    with enable_x64(True if wide else bool(jax.config.jax_enable_x64)):
        return hosted(jax.numpy.array(x, dtype=dtype or None))


def inner(a: Array, b: Array) -> float:
    """Real part of ``sum(a * b)`` in float64, by NumPy where both lie on the CPU."""
    if _is_near(a) and _is_near(b):
        return float(np.dot(_widened(a), _widened(b)).real)
    with enable_x64(True):
        left, right = jax.numpy.ravel(a), jax.numpy.ravel(b)
        is_complex = np.iscomplexobj(left) or np.iscomplexobj(right)
        wide = np.complex128 if is_complex else np.float64
        return float(jax.numpy.dot(left.astype(wide), right.astype(wide)).real)


def _is_near(x: Array) -> bool:
    return _is_numpy(x) or _is_at_home(x)


def _widened(x: Array) -> Array:
    flat = np.asarray(x).ravel()
    return flat.astype(np.complex128 if np.iscomplexobj(flat) else np.float64)


def normal(like: Array, seed: int) -> Array:
    """Standard normal array like another one, in the same place."""
    # Drawn by NumPy: JAX would compile its generator anew for every shape.
    draw = np.random.default_rng(seed).standard_normal((2, *like.shape))
    values = draw[0] + 1j * draw[1] if np.iscomplexobj(like) else draw[0]
    values = np.asarray(values).astype(like.dtype)
    return values if can_host(like) else jax.device_put(values, getattr(like, "sharding", None))


def moved(batch: Any, device: str) -> Any:
    """Arrays on a device, where one is named.

    Raises:
        UsageError: It is not there.
    """
    return jax.device_put(batch, _device(device)) if device else batch


def _device(name: str) -> Any:
    kind, _, index = str(name).partition(":")
    try:
        return jax.devices(kind)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        there = dict.fromkeys(f"{d.platform}:{d.id}" for d in (*jax.devices(), *jax.devices("cpu")))
        raise UsageError(
            f"device={name!r} is not there ({str(error).splitlines()[0]}); "
            f"allowed: {', '.join(there)}"
        ) from error
