"""What to try for each finding on a derivative."""

from __future__ import annotations

import math

from pytest_gradcheck.checks.accuse import is_flat
from pytest_gradcheck.checks.measured import Measured

SMALL = 5e-3  # relative; where solvers stop and tables end
ADVICE = {
    "missing": "look for detach, no_grad, .data, .item(), a step that is not differentiable, or a "
    "None in backward",
    "zero": "look for detach, stop_gradient, an input left out of backward, or a mask of zeros",
    "sign": "look for a minus sign, or a difference written the other way round",
    "factor": "look for a constant that forward and backward do not share (mean, square, scale)",
    "transposed": "look for a missing or extra transpose, or a reshape in another memory order",
    "adjoint": "multiply by J.T; a backward runs its operation in reverse (a cumsum from the end)",
    "triangle": "if symmetric input is meant, check a function that makes it so: f((a + a.mT) / 2)",
    "rolled": "look for an index that is one too large or too small, or a shift undone twice",
    "flipped": "look for a reversal that backward repeats on the wrong axis, or leaves out",
    "conjugate": "look for a missing or extra conj() on what multiplies the cotangent",
    "swapped": "look at the order in which backward returns the gradients",
    "exchanged": "look at the order in which backward takes the upstream gradients",
    "offset": "look for a constant that backward adds: an epsilon, a regulariser, a bias",
    "term": "look for a term that only forward or only backward has: weight decay, a penalty",
    "mean": "the mean, the norm and the deviation depend on the input too; differentiate them",
    "cotangent": "multiply by the upstream cotangent; the sum of the output is not its only use",
    "broadcast": "sum over the axes that broadcasting added, and over no others",
    "rounded": "look for a cast, a buffer or a constant of lower precision inside",
    "masked": "compare the branch or mask of backward with that of forward; "
    "a part that is meant to have none (a padding row) is declared by intended='the reason'",
    "output": "compare the formula for this output term by term",
    "element": "look for an index or a boundary that backward treats on its own",
    "flat": "look for detach, rounding or a comparison in the function; a straight-through "
    "estimator is declared by intended='the reason'",
    "other": "compare the formula for this input term by term",
    "backward-layout": "call .contiguous() on the cotangent, and reshape instead of view",
    "backward-zero": "look for a division by the cotangent",
    "backward-second-call": "keep saved tensors as they are, and no state between two calls",
    "backward-nondeterministic": "look for atomics, or for state that the backward keeps",
    "backward-input-alone": "return one gradient for each input, in order, whoever needs one",
    "backward-output-alone": "treat a missing cotangent (None) as zero",
    "backward-dtype": "return the gradient in the type of the input",
    "backward-mutates-input": "write into a copy",
    "backward-mutates-cotangent": "write into a copy: the cotangent may be used elsewhere",
    "backward-mutates-saved": "write into a copy",
    "gradient-cotangent": "multiply by the upstream cotangent, once",
    "forward-mode": "compare the jvp rule with the backward term by term",
    "forward-missing": "write the jvp of the custom function",
    "batched-mode": "look at the vmap rule, and for axes that are taken for fixed",
    "batched-missing": "write a vmap rule; leave NumPy and .item() out of the backward",
    "wrong-second-order": "look for detach, NumPy or once_differentiable in the backward",
    "second-order-missing": "write the backward with operations that can be differentiated",
}
OUT = "an input that is meant to have no gradient, such as a mask, is left out of wrt="


# Where one framework has another name for it.
ADVICE_OF = {("jax", "forward-missing"): "write a rule by custom_jvp in place of custom_vjp"}


def advice(backend: str, code: str) -> str:
    """What to try for a finding or a pattern, in the words of a framework."""
    return ADVICE_OF.get((backend, code), ADVICE[code])


def advised(seen: Measured) -> tuple[str, ...]:
    """What to try; first how to allow a small error without a form, which may be meant."""
    is_formless = all(culprit.pattern == "other" for culprit in seen.culprits)
    allowed, remedies = _allowance(seen), _remedies(seen)
    return allowed + remedies if is_formless else remedies + allowed


def _remedies(seen: Measured) -> tuple[str, ...]:
    """What to try for each of the culprits, each told once."""
    patterns = ("flat" if is_flat(culprit) else culprit.pattern for culprit in seen.culprits)
    remedies = dict.fromkeys(ADVICE[pattern] for pattern in patterns)
    is_one_of_several = len(seen.plan.sizes) > 1
    if ADVICE["missing"] in remedies and is_one_of_several:
        remedies[OUT] = None
    return tuple(remedies)


def _allowance(seen: Measured) -> tuple[str, ...]:
    """How to allow an error that is small enough to be meant; nothing where it is larger."""
    sizes = [
        abs(c.difference) / max(abs(c.reference), abs(c.claimed))
        for culprit in seen.culprits
        for look in culprit.looks
        for c in look.comparisons
        if c.is_known and c.difference
    ]
    if not sizes or max(sizes) > SMALL:
        return ()
    told = f"{10.0 ** (math.floor(math.log10(max(sizes))) + 1):.0e}"
    return (f"if so small an error is meant (a solver's tolerance, a table): tolerance={told}",)
