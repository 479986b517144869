"""An empty suite of 1,000 tests with the plugin and with ``-p no:gradcheck``.

Run: ``python benchmarks/overhead.py``. Whole pytest processes, interleaved in pairs of alternating
order; processor time (user and system), since the clock of a shared machine says little. What
others do to the machine only adds, so the ratio of the two fastest runs is what counts; the median
and the quartiles of the paired ratios show how much it was disturbed.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS, ROUNDS = 1000, 21
BASE = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]


def run(folder: str, *extra: str) -> float:
    """Processor seconds of one pytest process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*BASE, *extra, folder], check=True, capture_output=True, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        body = "".join(f"def test_{i}():\n    pass\n\n\n" for i in range(TESTS))
        Path(folder, "test_empty.py").write_text(body)
        run(folder), run(folder, "-p", "no:gradcheck")  # byte code and file cache
        ratios, seconds, bare = [], [], []
        for i in range(ROUNDS):
            order = [(), ("-p", "no:gradcheck")][:: 1 if i % 2 else -1]
            took = {extra: run(folder, *extra) for extra in order}
            ratios.append(took[()] / took["-p", "no:gradcheck"])
            seconds.append(took[()])
            bare.append(took["-p", "no:gradcheck"])
    low, high = sorted(ratios)[ROUNDS // 4], sorted(ratios)[-(ROUNDS // 4) - 1]
    print(f"{TESTS} empty tests, {ROUNDS} pairs of runs\n")
    print("| with / without: fastest of each | median of pairs | quartiles | with plugin, CPU s |")
    print("|---|---|---|---|")
    median, fastest = statistics.median(ratios), min(seconds) / min(bare)
    print(f"| {fastest:.3f} | {median:.3f} | {low:.3f} to {high:.3f} | {min(seconds):.2f} |")


if __name__ == "__main__":
    main()
