"""An empty suite of 1,000 tests with the plugin and with ``-p no:gradcheck``.

Run: ``python benchmarks/overhead.py``. Whole pytest processes, interleaved in pairs of alternating
order; the median of the paired ratios is what counts, since machines are shared.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS, ROUNDS = 1000, 21
BASE = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]


def run(folder: str, *extra: str) -> float:
    """Seconds of one pytest process."""
    began = time.perf_counter()
    subprocess.run([*BASE, *extra, folder], check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        body = "".join(f"def test_{i}():\n    pass\n\n\n" for i in range(TESTS))
        Path(folder, "test_empty.py").write_text(body)
        run(folder), run(folder, "-p", "no:gradcheck")  # byte code and file cache
        ratios, seconds = [], []
        for i in range(ROUNDS):
            order = [(), ("-p", "no:gradcheck")][:: 1 if i % 2 else -1]
            took = {extra: run(folder, *extra) for extra in order}
            ratios.append(took[()] / took["-p", "no:gradcheck"])
            seconds.append(took[()])
    low, high = sorted(ratios)[ROUNDS // 4], sorted(ratios)[-(ROUNDS // 4) - 1]
    print(f"{TESTS} empty tests, {ROUNDS} pairs of runs\n")
    print("| with plugin / without | median | quartiles | with plugin, s |")
    print("|---|---|---|---|")
    median = statistics.median(ratios)
    print(f"| | {median:.3f} | {low:.3f} to {high:.3f} | {statistics.median(seconds):.2f} |")


if __name__ == "__main__":
    main()
