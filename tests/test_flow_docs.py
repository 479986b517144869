"""The page on gradient flow is executed: examples pass, the failure is the one a user gets."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "flow.md").read_text(encoding="utf-8")
README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- test -->\n```python\n(.*?)```", PAGE, re.DOTALL)
FAILING = re.search(r"<!-- failing -->\n```python\n(.*?)```", PAGE, re.DOTALL).group(1)
SHOWN = re.search(r"<!-- failure -->\n```\n(.*?)```", PAGE, re.DOTALL).group(1)
FIRST = re.search(r"<!-- flow -->\n```python\n(.*?)```", README, re.DOTALL).group(1)
OPTIONS = ("-p", "no:randomly", "-p", "no:benchmark", "-p", "no:pytest_torch")


def test_every_example_passes(pytester):
    blocks = {f"test_block_{n}": block for n, block in enumerate([*BLOCKS, FIRST])}
    pytester.makepyfile(**blocks)
    result = pytester.runpytest_subprocess(*OPTIONS, "-W", "error")
    result.assert_outcomes(passed=sum(block.count("def test_") for block in blocks.values()))
    assert len(BLOCKS) == 4


def failure(pytester):
    pytester.makepyfile(test_deep=FAILING)
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(failed=1)
    return "\n".join(line for line in result.outlines if line.startswith("E  ")) + "\n"


def without_digits(text):
    """Sizes differ in the last digit, and a bar by a block, from one machine to the next."""
    return re.sub(r"█+ *", "█ ", re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "0", text))


def test_the_failure_shown_is_the_failure_one_gets(pytester):
    assert without_digits(failure(pytester)) == without_digits(SHOWN)


def test_the_pictures_can_be_drawn_again():
    made = runpy.run_path(str(DOCS / "pictures.py"))["pictures"]()
    for name, text in made.items():
        ElementTree.fromstring(text)
        kept = ElementTree.fromstring((DOCS / name).read_text(encoding="utf-8"))
        assert [e.tag for e in kept] == [e.tag for e in ElementTree.fromstring(text)]
        assert f"({name})" in PAGE
