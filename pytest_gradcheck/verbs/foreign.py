"""Arguments by the names that other checkers and libraries give them, and what they are here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Hint = tuple[str, str]  # an argument here, and what to say where a verb takes it


def _same(*names: str) -> tuple[Hint, ...]:
    return tuple((name, f"did you mean {name}=?") for name in names)


_TOLERANCES = _same("step_gradient", "clip_rounding")
_RELATIVE = (
    "tolerance",
    "tolerance= is the relative error of a gradient that is accepted; none is needed for what "
    "rounding does",
)
_STEP = "the step of the differences is found from the function, and cannot be given"
_DRAWN = "directions are drawn until an error of resolution= would show"
_INPUTS = "name the inputs under test with wrt=, and give the inputs themselves by position"
_RAISING = "assert_gradient and the fixture raise, check_gradient does not"

# The first hint is given whose argument the verb takes.
FOREIGN: dict[str, tuple[Hint, ...]] = {
    **dict.fromkeys(("tol", "rtol", "atol"), (_RELATIVE, *_TOLERANCES)),
    **dict.fromkeys(("tolerance", "precision"), (*_same("tolerance"), *_TOLERANCES)),
    "nondet_tol": (_RELATIVE,),
    **dict.fromkeys(("eps", "epsilon", "step", "delta", "h"), (("resolution", _STEP),)),
    **dict.fromkeys(("fast_mode", "n", "samples", "num_samples"), (("resolution", _DRAWN),)),
    **dict.fromkeys(("argnums", "argnum", "args"), (("wrt", _INPUTS),)),
    **dict.fromkeys(("names", "param", "params"), (("wrt", _INPUTS),)),
    "raise_exception": (("wrt", _RAISING),),
    "check_forward_ad": (("modes", "did you mean modes=('reverse', 'forward')?"),),
    "check_batched_grad": (("modes", "did you mean modes=('reverse', 'batched')?"),),
    **dict.fromkeys(("fprime", "gradient"), _same("grad")),
    **dict.fromkeys(("jacobian", "fjac"), _same("jac")),
    "name": _same("label"),
    **dict.fromkeys(("clip", "clip_norm", "grad_clip", "gradient_clip_val"), _same("max_norm")),
    **dict.fromkeys(("max_grad_norm", "threshold", "grad_norm"), _same("max_norm")),
    **dict.fromkeys(("clip_value", "value"), _same("max_value")),
    **dict.fromkeys(("accumulation_steps", "grad_accum", "accumulation"), _same("accumulate")),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "accumulate_grad_batches"), _same("accumulate")
    ),
    **dict.fromkeys(("learning_rate", "rate"), _same("lr")),
    **dict.fromkeys(("wd", "decay", "l2"), _same("weight_decay")),
    **dict.fromkeys(("beta", "beta1", "beta2"), _same("betas")),
    **dict.fromkeys(("steps", "n_steps", "num_steps", "calls"), _same("step_calls")),
    **dict.fromkeys(("scheduler", "lr_schedule"), _same("schedule")),
}


def hint(name: str, taken: Collection[str], near: Sequence[str]) -> str:
    """What was meant by an argument that a verb does not take; nothing where that is not known.

    Args:
        name: The argument.
        taken: Those that the verb takes.
        near: Arguments of a similar name, the nearest first, for one that is not foreign.
    """
    known = [words for argument, words in FOREIGN.get(name, ()) if argument in taken]
    known += [f"did you mean {other}=?" for other in near]
    return f"; {known[0]}" if known else ""
