"""Clipping as a story: by fixture, by function under a marker, by flag; with and without xdist."""

CLIPS = """
import numpy as np
import pytest
from pytest_gradcheck import assert_clipping


def norm(grads):
    return np.sqrt(sum((g**2).sum() for g in grads))


def right(grads, max_norm):
    return [g * min(1.0, max_norm / (norm(grads) + 1e-6)) for g in grads]


def per_tensor(grads, max_norm):
    return [g * min(1.0, max_norm / (norm([g]) + 1e-6)) for g in grads]


def nearly(grads):
    return [g * min(1.0, 1.001 / (norm(grads) + 1e-6)) for g in grads]


def test_right(gradclip):
    assert gradclip(right, max_norm=1.0).verdict == "pass"


def test_wrong(gradclip):
    gradclip(per_tensor, max_norm=1.0)


def test_nearly(gradclip):
    gradclip(nearly, max_norm=1.0)


@pytest.mark.gradclip(clip_rounding=0.01)
def test_nearly_marked():
    assert_clipping(nearly, max_norm=1.0)


@pytest.mark.gradclip
def test_idle():
    pass
"""
EXPECTED = {
    "test_right": ["pass"],
    "test_wrong": ["fail"],
    "test_nearly": ["fail"],
    "test_nearly_marked": ["pass"],
    "test_idle": ["vacuous"],
}


def test_fixture_and_marker(project, way):
    project.file("test_clips.py", CLIPS)
    run = project.run(*way)
    run.assert_outcomes(passed=2, failed=3)
    assert project.verdicts() == EXPECTED
    run.stdout.fnmatch_lines(["*wrong clipping: per_tensor clips each tensor by itself*"])


def test_flag(project):
    project.file("test_clips.py", CLIPS)
    project.run("--gradcheck-clip-rounding=0.01").assert_outcomes(passed=3, failed=2)


def test_the_marker_selects_what_uses_the_fixture(project):
    project.file("test_clips.py", CLIPS)
    project.run("-m", "gradclip and not gradcheck")
    assert set(project.verdicts()) == set(EXPECTED)
