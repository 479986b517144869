"""A rule of the user's that its framework refuses by its form: it is wrong, and no call is."""

from __future__ import annotations

__tracebackhide__ = True  # pytest shows the user's own frames; --full-trace shows these


class RefusedRule(Exception):  # noqa: N818  # a finding on its way, not a fault of ours
    """A backward or jvp rule that returns the wrong shapes, or too few or too many.

    Args:
        code: Code of the finding, such as ``gradient-shape``.
        message: What is wrong in words, with ``{input}`` where the input stands; after a
            semicolon, what to do.
        input: The input in words of its own, such as ``its input 1``.
        spot: Which input of the function under test that is, where that is known.
        argument: Which argument of the rule's function it belongs to, and its path in there.
    """

    def __init__(
        self,
        code: str,
        message: str,
        input: str = "",  # as in the message
        spot: int | None = None,
        argument: tuple[int, str] | None = None,
    ) -> None:
        super().__init__(message.replace("{input}", input))
        self.code, self.message, self.input = code, message, input
        self.spot, self.argument = spot, argument


def shape_told(rule: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """A gradient of the wrong shape, and what to do about it."""
    told = f"{rule} returns shape {got} for {{input}}, not {wanted}"
    lead = len(got) - len(wanted)
    pairs = list(zip(got[lead:], wanted, strict=True)) if lead >= 0 else []
    if lead >= 0 and all(w in (1, g) for g, w in pairs):
        return f"{told}; sum over the axes that broadcasting added"
    if sorted(got) == sorted(wanted):
        return f"{told}; look for a missing or extra transpose"
    return f"{told}; return one number for each element of the input"
