"""The pytest shell: declares options and markers, offers fixtures, carries results to the reports.

Loaded at every start of pytest, so it imports neither NumPy nor any framework.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from pytest_gradcheck.plugin.fixtures import gradcheck, gradclip, gradflow, gradstep
from pytest_gradcheck.plugin.items import (
    pytest_itemcollected,
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_runtest_setup,
)
from pytest_gradcheck.plugin.options import pytest_addoption
from pytest_gradcheck.plugin.session import (
    pytest_addhooks,
    pytest_configure,
    pytest_unconfigure,
)

__all__ = [
    "gradcheck",
    "gradclip",
    "gradflow",
    "gradstep",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_configure",
    "pytest_itemcollected",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_runtest_setup",
    "pytest_unconfigure",
]
