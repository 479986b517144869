"""The findings with an example are executed: each faulty one gets its code, each fix does not."""

import ast
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from pytest_gradcheck import check_clipping

torch = pytest.importorskip("torch")  # here: what pytester imports, it drops again
optax = pytest.importorskip("optax")

loops = importlib.import_module("loops")

DOCS = Path(__file__).parents[1] / "docs"
OPTIONS = ("-p", "no:randomly", "-p", "no:benchmark", "-p", "no:pytest_torch", "-W", "error")
SECTION = re.compile(r"^### `(.+?)`$(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
PAIR = re.compile(r"<!-- faulty, then fixed -->\n```python\n(.*?)```", re.DOTALL)


def pairs(page):
    found = []
    for code, text in SECTION.findall((DOCS / page).read_text("utf-8")):
        block = PAIR.search(text)
        assert block, f"{code} has no example"
        faulty, fixed = ast.parse(block[1]).body
        found.append(pytest.param(code, ast.unparse(faulty), ast.unparse(fixed), id=code))
    return found


def norm(gradients, p=2.0):
    row = np.concatenate([np.ravel(g) for g in gradients]).astype(np.float64)
    return float(np.linalg.norm(row, p))


@pytest.mark.parametrize(("code", "faulty", "fixed"), pairs("clipping.md"))
def test_findings_on_clipping(code, faulty, fixed):
    names = {
        "gradclip": check_clipping,
        "clip_grad_norm_": torch.nn.utils.clip_grad_norm_,
        "norm": norm,
        "np": np,
    }
    assert code in {f.code for f in eval(faulty, names).findings}
    assert code not in {f.code for f in eval(fixed, names).findings}


@pytest.mark.parametrize(("code", "faulty", "fixed"), pairs("steps.md"))
def test_findings_on_steps(code, faulty, fixed):
    names = {name: getattr(loops, name) for name in ("loop", "optax_loop", "STEP", "BY_HAND")}
    assert code in {f.code for f in eval(faulty, names).findings}
    assert code not in {f.code for f in eval(fixed, names).findings}


def blocks(page):
    text = (DOCS / page).read_text("utf-8")
    return re.findall(r"<!-- test -->\n```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", ["clipping.md", "steps.md"])
def test_every_example_passes(pytester, page):
    tests = {f"test_block_{i}": block for i, block in enumerate(blocks(page))}
    assert tests
    pytester.makepyfile(**tests)
    result = pytester.runpytest_subprocess(*OPTIONS)
    count = sum(block.count("\ndef test_") for block in tests.values())
    # An example of a library that need not be there is skipped.
    skipped = sum("importorskip" in block for block in tests.values())
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed", 0) + outcomes.get("skipped", 0) == count
    assert outcomes.get("skipped", 0) <= skipped
