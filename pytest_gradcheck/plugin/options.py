"""Flags and ini names, made from the table of limits, and their values as one frozen value.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_gradcheck.errors import UsageError
from pytest_gradcheck.limits import LIMITS, VERBS, Limit, Limits, limits_of

FORMATS = ("json",)
PRECISIONS = ("float64", "float32", "float16", "bfloat16")


class Settings(NamedTuple):
    """What flags and ini ask for.

    Args:
        limits: Limits of each verb.
        seed: Seed for every test, None for one of each test's own.
        device: Device to move inputs to, empty to leave them.
        is_report_only: Whether no verdict fails its test.
        reports: Pairs of format and path.
    """

    limits: dict[str, Limits]
    seed: int | None
    device: str
    is_report_only: bool
    reports: tuple[tuple[str, Path], ...]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the flags and the ini names; nothing is computed here."""
    group = parser.getgroup("gradcheck", "gradient checks (pytest-gradcheck)")
    for limit in LIMITS:
        group.addoption(
            limit.flag,
            dest=limit.ini,
            metavar="WORD" if limit.choices else "NUMBER",
            default=None,
            help=_help(limit),
        )
        parser.addini(limit.ini, _help(limit), type=_ini_type(limit), default=None)
    group.addoption(
        "--gradcheck-seed",
        metavar="N",
        default=None,
        help="Seed of every random direction (default: a hash of each test's name)",
    )
    group.addoption(
        "--gradcheck-device",
        metavar="NAME",
        default="",
        help="Move the inputs of gradcheck and gradflow to this device, as the framework names it; "
        "trainings and clips stay where the test builds them",
    )
    group.addoption(
        "--gradcheck-report",
        metavar="FORMAT:PATH",
        action="append",
        default=[],
        help=f"Write a report; repeatable; formats: {', '.join(FORMATS)}",
    )
    group.addoption(
        "--gradcheck-report-only",
        action="store_true",
        default=False,
        help="Report every verdict and let none fail its test",
    )


def _ini_type(limit: Limit) -> Any:  # Any: pytest's own type of it is private
    """By type, so that [tool.pytest] takes a TOML number."""
    if limit.suffix:  # a number or words: before pytest 9.2 as a string only
        return float | str if pytest.version_tuple >= (9, 2) else "string"
    return "string" if limit.choices else "float"


def _help(limit: Limit) -> str:
    return f"{limit.help} (default: {_default(limit)}; ini: {limit.ini})"


def _default(limit: Limit) -> str:
    """A default in words: one, or that of each precision."""
    if isinstance(limit.default, dict):
        each = [(name, limit.default_for(name)) for name in PRECISIONS]
        return ", ".join(f"{value:g} in {name}" for name, value in each)
    return limit.default if isinstance(limit.default, str) else f"{limit.default:g}"


def settings(config: pytest.Config) -> Settings:
    """The settings of a session.

    Raises:
        pytest.UsageError: A value that is not allowed.
    """
    try:
        return Settings(
            limits={verb: _limits(config, verb) for verb in VERBS},
            seed=_seed(config.getoption("--gradcheck-seed")),
            device=config.getoption("--gradcheck-device"),
            is_report_only=config.getoption("--gradcheck-report-only"),
            reports=tuple(_report(text) for text in config.getoption("--gradcheck-report")),
        )
    except UsageError as error:
        raise pytest.UsageError(f"pytest-gradcheck: {error}") from error


def _limits(config: pytest.Config, verb: str) -> Limits:
    limits = Limits(verb)
    for name, limit in limits_of(verb).items():
        value = _ini(config, limit)
        if value is not None:
            place = _ini_place(config, limit)
            limits = limits.narrowed("ini", place, {name: limit.parse(value, place)})
    for name, limit in limits_of(verb).items():
        value = config.getoption(limit.ini)
        if value is not None:
            parsed = limit.parse(value, limit.flag)
            limits = limits.narrowed("flag", limit.flag, {name: parsed})
    return limits


def _ini(config: pytest.Config, limit: Limit) -> Any:  # Any: whatever the file holds
    try:
        return config.getini(limit.ini)
    except (TypeError, ValueError, pytest.UsageError) as error:
        written = str(error).rpartition(": ")[2]  # the end of pytest's own message
        raise UsageError(
            f"{_ini_place(config, limit)}: {written} is not allowed; allowed: {limit.allowed}"
        ) from error


def _override(config: pytest.Config, limit: Limit) -> str | None:
    given = [text.partition("=") for text in config.getoption("override_ini") or []]
    return next((value for name, _, value in reversed(given) if name == limit.ini), None)


def _ini_place(config: pytest.Config, limit: Limit) -> str:
    if _override(config, limit) is not None:
        return f"-o {limit.ini}"
    return f"{config.inipath.name if config.inipath else 'ini'}: {limit.ini}"


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(
            f"--gradcheck-seed: {text!r} is not allowed; allowed: a whole number"
        ) from error


def _report(text: str) -> tuple[str, Path]:
    kind, _, path = text.partition(":")
    if not path or kind not in FORMATS:
        raise UsageError(
            f"--gradcheck-report: {text!r} is not allowed; allowed: FORMAT:PATH with FORMAT "
            f"one of {', '.join(FORMATS)}"
        )
    return kind, Path(path)
