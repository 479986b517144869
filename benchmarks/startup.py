"""What ``import pytest_gradcheck.plugin`` adds to ``import pytest``, beside other plugins.

Run: ``python benchmarks/startup.py``. A fresh interpreter each time, interleaved; milliseconds on
top of ``import pytest`` (median, and the fastest), and which heavy packages came along.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys

PLUGINS = {
    "pytest-gradcheck": "pytest_gradcheck.plugin",
    "pytest-benchmark": "pytest_benchmark.plugin",
    "hypothesis": "_hypothesis_pytestplugin",
    "pytest-torch": "pytest_torch.plugin",
}
HEAVY = ("numpy", "torch", "jax", "scipy")
ROUNDS = 25

PROGRAM = """
import sys, time
import pytest
began = time.perf_counter()
import {module}
took = time.perf_counter() - began
print(took * 1e3, ",".join(m for m in {heavy!r} if m in sys.modules) or "none")
"""


def once(module: str) -> tuple[float, str]:
    """Milliseconds and heavy packages of one fresh interpreter."""
    program = PROGRAM.format(module=module, heavy=HEAVY)
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    took, loaded = out.stdout.split()
    return float(took), loaded


def main() -> None:
    present = {n: m for n, m in PLUGINS.items() if importlib.util.find_spec(m.split(".")[0])}
    times: dict[str, list[float]] = {name: [] for name in present}
    loaded: dict[str, str] = {}
    for _ in range(ROUNDS):
        for name, module in present.items():
            took, loaded[name] = once(module)
            times[name].append(took)
    own = statistics.median(times["pytest-gradcheck"])
    print(f"fresh interpreters: {ROUNDS} each, Python {sys.version.split()[0]}\n")
    print("| plugin | median ms | fastest ms | ratio to ours | loads |")
    print("|---|---|---|---|---|")
    for name in PLUGINS:
        if name not in present:
            print(f"| {name} | not installed | | | |")
            continue
        median = statistics.median(times[name])
        print(
            f"| {name} | {median:.1f} | {min(times[name]):.1f} | {median / own:.2f} "
            f"| {loaded[name]} |"
        )


if __name__ == "__main__":
    main()
