"""Differences as small as a rounding: named by it, and no factor of 1."""

import importlib

import pytest

pytest.importorskip("torch")
loop = importlib.import_module("loops").loop

FIRST = "batch = (batch[0].{}().float(), batch[1]); "
BOTH = "batch = tuple(x.{}().float() for x in batch); "
STEP = "opt.zero_grad(); loss(batch).backward(); opt.step()"
GRADIENT = """
opt.zero_grad(); loss(batch).backward()
put([g.{}().float() for g in grads()]); opt.step()
"""
PARAMETERS = """
kept = values(); place([p.{}().float() for p in params])
opt.zero_grad(); loss(batch).backward(); place(kept); opt.step()
"""
WHAT = {
    "a batch with its inputs": FIRST + STEP,
    "a batch": BOTH + STEP,
    "the right gradient": GRADIENT,
}
KINDS = {"half": "float16", "bfloat16": "bfloat16"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("clip", ["", "clip(params, 0.1); opt.step()"])
def test_what_is_rounded_is_named(what, kind, clip):
    body, claims = WHAT[what].format(kind), {}
    if clip and "put" not in body:
        body, claims = body.replace("opt.step()", clip), {"max_norm": 0.1}
    result = loop(body, **claims)
    assert f"{what} rounded to {KINDS[kind]}" in result.headline
    assert result.findings[0].code == "step-rounded"
    assert loop(body, step_gradient=0.1, **claims).verdict == "pass"


@pytest.mark.parametrize("factor", [1.0005, 1.002, 0.9995])
def test_a_factor_near_1_has_its_digits(factor):
    result = loop(f"opt.zero_grad(); ({factor} * loss(batch)).backward(); opt.step()")
    assert f"{factor} times the right gradient" in result.headline


def test_a_small_term_is_no_factor_and_no_decay():
    result = loop(
        "opt.zero_grad(); loss(batch).backward(); "
        "put([g + 1e-3 * g.norm() * (1 - 2 * (torch.arange(g.numel()).reshape(g.shape) % 2)) "
        "for g in grads()]); opt.step()"
    )
    assert result.findings[0].code == "step-wrong-gradient"
    assert "1 times" not in result.headline
    assert "ratio 1)" not in result.headline
    assert "of the right length" in result.headline


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_rounded_for_the_gradient(kind):
    result = loop(PARAMETERS.format(kind))
    assert result.verdict == "fail" or "step-perturbed" in {f.code for f in result.findings}
