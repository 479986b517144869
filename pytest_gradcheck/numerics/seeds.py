"""Seeds that depend on names, so that adding a leaf does not move another leaf's direction."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**31) from a seed and names; equal arguments give equal seeds anywhere.

    31 bits, because every framework's generator takes them.
    """
    text = "\0".join([str(seed), *(str(name) for name in names)])
    digest = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF
