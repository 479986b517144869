"""The pytester fixture, for the stories; nothing else is shared between the rooms."""

import sys

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    """What JAX compiled for one file is no use to the next, and takes gigabytes in all."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
