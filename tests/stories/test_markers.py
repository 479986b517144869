"""The marker: its arguments, what it selects, and the pages that describe it."""

import pytest

from pytest_gradcheck.limits import limits_of

NAMES = ", ".join(limits_of("gradcheck"))
PLACE = "@pytest.mark.gradcheck"
MISUSES = {
    "tol=1e-3": f"{PLACE}: gradcheck has no argument 'tol'; it takes {NAMES}; all else goes into "
    "the call of gradcheck",
    "1e-3": f"{PLACE} takes keyword arguments only, got 0.001; it takes {NAMES}",
    "tolerance=5": f"{PLACE}: tolerance: 5 is not allowed; allowed: a number in (0, 1]",
}


@pytest.mark.parametrize(("argument", "message"), MISUSES.items(), ids=MISUSES)
def test_a_misused_marker_is_an_error_of_its_test(project, argument, message):
    project.tests(
        f"""
        @pytest.mark.gradcheck({argument})
        def test_misused(gradcheck):
            gradcheck(square, X, grad=right)

        def test_other(gradcheck):
            gradcheck(square, X, grad=right)
        """
    )
    run = project.run()
    run.assert_outcomes(passed=1, errors=1)
    assert message in run.stdout.lines
    run.stdout.no_fnmatch_line("*Traceback*")
    assert project.verdicts() == {"test_other": ["pass"]}


def test_a_skipped_test_is_not_asked_for_its_marker(project):
    project.tests("@pytest.mark.skip\n@pytest.mark.gradcheck(tol=1)\ndef test_later():\n    pass")
    project.run().assert_outcomes(skipped=1)


SELECTION = """
@pytest.fixture
def through(gradcheck):
    return gradcheck

def test_fixture(gradcheck):
    gradcheck(square, X, grad=right)

def test_through_another_fixture(through):
    through(square, X, grad=right)

@pytest.mark.gradcheck
def test_marked():
    assert_gradient(square, X, grad=right)

def test_neither():
    pass
"""


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("gradcheck", ["test_fixture", "test_marked", "test_through_another_fixture"]),
        ("not gradcheck", []),
    ],
)
def test_the_marker_selects_what_uses_the_fixture(project, way, expression, selected):
    project.tests(SELECTION)
    run = project.run(*way, "-m", expression)
    assert sorted(project.verdicts()) == selected
    run.assert_outcomes(passed=len(selected) or 1)


def test_the_fixture_alone_does_not_promise_a_check(project):
    # It may be called under a condition; only the marker promises that something is checked.
    project.tests("def test_maybe(gradcheck):\n    assert gradcheck")
    project.run().assert_outcomes(passed=1)
    assert project.totals() == {}


def test_each_marked_test_must_check_something_itself(project, way):
    project.tests(
        """
        pytestmark = pytest.mark.gradcheck

        def test_busy():
            check_gradient(square, X, grad=right)

        def test_idle():
            pass

        def test_skipped():
            pytest.skip("not today")

        def test_broken():
            raise OSError
        """
    )
    run = project.run(*way)
    run.assert_outcomes(passed=1, failed=2, skipped=1)
    assert project.verdicts() == {"test_busy": ["pass"], "test_idle": ["vacuous"]}


def test_markers_prints_a_manual_page(project):
    run = project.run("--markers")
    run.stdout.fnmatch_lines(
        [
            f"{PLACE}({NAMES.replace(',', '=…,')}=…): limits for the checks of this test; a marked "
            "test in which nothing is checked is vacuous and fails."
        ]
    )


def test_fixtures_prints_the_call_forms(project):
    run = project.run("--fixtures")
    run.stdout.fnmatch_lines(
        [
            "gradcheck -- */plugin/fixtures.py:*",
            "    Check *``gradcheck(f, x, grad=g)``*",
        ]
    )


FLAGS = [
    "--gradcheck-resolution=NUMBER",
    "--gradcheck-miss-probability=NUMBER",
    "--gradcheck-tolerance=NUMBER",
    "--gradcheck-undecided=WORD",
    "--gradcheck-vacuous=WORD",
    "--gradcheck-seed=N",
    "--gradcheck-device=NAME",
    "--gradcheck-report=FORMAT:PATH",
    "--gradcheck-report-only",
]


def test_help_shows_every_flag_in_one_group(project):
    lines = project.run("--help").stdout.lines
    group = lines[lines.index("gradient checks (pytest-gradcheck):") :]
    group = group[: group.index("")]
    first_words = {line.split()[0] for line in group}
    assert first_words >= set(FLAGS)
    assert not {line for line in lines if "--gradcheck" in line} - set(group)


def test_help_tells_default_range_and_ini_name(project):
    text = " ".join(" ".join(project.run("--help").stdout.lines).split())
    assert (
        "--gradcheck-undecided=WORD What an undecided verdict does to its test "
        "(default: fail; ini: gradcheck_undecided)"
    ) in text
    assert "gradcheck_tolerance (float): Relative error" in text
