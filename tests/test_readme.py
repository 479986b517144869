"""The README is executed: its examples pass, and the failure it shows is what a user gets."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- test -->\n```python\n(.*?)```", README, re.DOTALL)
SHOWN = re.search(r"<!-- failure -->\n```\n(.*?)```", README, re.DOTALL).group(1)
OPTIONS = ("-p", "no:randomly", "-p", "no:benchmark", "-p", "no:pytest_torch")


def test_there_is_an_example_for_each_backend_and_the_mark():
    text = "\n".join(BLOCKS)
    assert len(BLOCKS) == 6
    assert all(name in text for name in ("torch", "jax", "numpy", "pytest.mark.gradcheck"))


def test_every_example_passes(pytester):
    pytester.makepyfile(**{f"test_block_{i}": block for i, block in enumerate(BLOCKS)})
    result = pytester.runpytest_subprocess(*OPTIONS, "-W", "error")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["9 checks: 9 passed"])


def test_the_failure_shown_is_the_failure_one_gets(pytester):
    (block,) = (b for b in BLOCKS if "loss_grad" in b)
    pytester.makepyfile(test_loss=block.replace(" / len(y)", ""))
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(failed=1)
    lines = [line for line in result.outlines if line.startswith("E  ")]
    assert told("\n".join(lines)) == told(SHOWN)


def told(text):
    """A failure without what the last bits of the machine decide: the bound, and how many looks."""
    text = re.sub(r"± +\S+", "± BOUND", text)
    text = re.sub(r"\d+ evaluations", "N evaluations", text)
    return re.sub(r"\s+", " ", text.replace("\nE ", "\n")).strip()
