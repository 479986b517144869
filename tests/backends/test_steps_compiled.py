"""JAX compiled as users have it, where the other tests compile in a hurry, and round otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optax")

HERE = Path(__file__).parent
CHOSEN = "(explodes and 0-) or adamw"


@pytest.mark.skipif(not os.environ.get("XLA_FLAGS"), reason="all tests are compiled so here")
def test_steps_as_users_compile_them():
    names = [HERE / "test_steps_points.py", "-k", CHOSEN, "-p", "no:cacheprovider", "-q"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, names)],
        env={**os.environ, "XLA_FLAGS": ""},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "4 passed" in ran.stdout
