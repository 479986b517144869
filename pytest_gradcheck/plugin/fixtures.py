"""Fixtures: the verbs as arguments of a test.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_gradcheck.results import Result


@pytest.fixture
def gradcheck() -> Callable[..., Result]:
    """Check derivatives: ``gradcheck(f, x)``, ``gradcheck(model, x)``, ``gradcheck(f, x, grad=g)``.

    Fails the test unless the derivative is right; returns the result. The arguments are those of
    ``pytest_gradcheck.assert_gradient``.
    """
    from pytest_gradcheck.verbs.gradient import assert_gradient

    return assert_gradient


@pytest.fixture
def gradflow() -> Callable[..., Result]:
    """Check that the gradient reaches every layer: ``gradflow(model, loss, batch, make=build)``.

    Fails the test where it vanishes, explodes, is missing or not finite, or where units are dead;
    returns the result. The arguments are those of ``pytest_gradcheck.assert_flow``.
    """
    from pytest_gradcheck.verbs.flow import assert_flow

    return assert_flow


@pytest.fixture
def gradclip() -> Callable[..., Result]:
    """Check clipping: ``gradclip(clip_grad_norm_, max_norm=1.0)``, ``gradclip(clip, max_value=1)``.

    Fails the test unless the clip does what it claims; returns the result. The arguments are those
    of ``pytest_gradcheck.assert_clipping``.
    """
    from pytest_gradcheck.verbs.clipping import assert_clipping

    return assert_clipping


@pytest.fixture
def gradstep() -> Callable[..., Result]:
    """Check a training step: ``gradstep(training)``, where ``training()`` builds a ``Training``.

    Fails the test unless gradients and updates are right; returns the result. The arguments are
    those of ``pytest_gradcheck.assert_step``.
    """
    from pytest_gradcheck.verbs.step import assert_step

    return assert_step
