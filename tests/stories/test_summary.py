"""What the terminal shows: a section where a check ran, and nothing anywhere else."""

import pytest

MIXED = """
def test_right(gradcheck):
    gradcheck(square, X, grad=right)

def test_wrong(gradcheck):
    gradcheck(square, X, grad=wrong)
"""


def section(run):
    """The lines of the summary section, without its title."""
    lines = run.stdout.lines
    start = next(i for i, line in enumerate(lines) if line.strip("=") == " gradient checks ")
    length = next(i for i, line in enumerate(lines[start + 1 :]) if line.startswith("="))
    return lines[start + 1 : start + 1 + length]


def test_the_section_counts_and_shows_what_is_not_green(project, way):
    project.tests(MIXED)
    assert section(project.run(*way)) == [
        "2 checks: 1 passed, 1 failed",
        "FAIL test_sample.py::test_wrong",
        "  wrong gradient of square: x has the wrong sign",
        f"report: json in {project.report_path}",
    ]


def test_verbose_shows_what_passed_too(project):
    project.tests(MIXED)
    lines = section(project.run("-v"))
    assert lines[:2] == ["2 checks: 1 passed, 1 failed", "PASS test_sample.py::test_right"]
    assert lines[2].startswith("  gradient of square is right in 1 input; an error of ")
    assert lines[3] == "FAIL test_sample.py::test_wrong"


def test_a_long_list_is_cut_unless_asked_for(project):
    project.tests(
        """
        @pytest.mark.parametrize("number", range(7))
        def test_wrong(gradcheck, number):
            gradcheck(square, X, grad=wrong)
        """
    )
    lines = section(project.run())
    assert sum(line.startswith("FAIL") for line in lines) == 5
    assert "… and 2 more; -v shows all" in lines
    lines = section(project.run("-v"))
    assert sum(line.startswith("FAIL") for line in lines) == 7


@pytest.mark.parametrize("args", [["-q"], ["-qq"], ["-q", "-n", "2"]], ids=" ".join)
def test_quiet_is_one_line(project, args):
    project.tests(MIXED)
    lines = project.run(*args, "--tb=no").stdout.lines
    told = [line for line in lines if "check" in line and "FAILED" not in line]
    assert told == ["gradcheck: 2 checks: 1 passed, 1 failed"]


def test_nothing_is_shown_where_no_check_ran(project, way):
    project.file("test_other.py", "def test_other():\n    pass")
    project.file("pyproject.toml", "[tool.pytest.ini_options]\nfilterwarnings = ['error']\n")
    with_plugin = project.run_alone(*way, "-v")
    assert with_plugin.ret == pytest.ExitCode.OK
    # The list of installed plugins is pytest's own line.
    lines = [line for line in with_plugin.stdout.lines if not line.startswith("plugins:")]
    assert not [line for line in lines if "grad" in line]
    assert not (project.path / "report.json").exists()


def test_a_run_leaves_no_file_behind_unless_asked(project):
    project.tests(MIXED)
    before = {path.name for path in project.path.iterdir()}
    project.run_alone("-p", "no:cacheprovider")
    after = {path.name for path in project.path.iterdir()}
    assert after - before <= {"__pycache__", "stdout", "stderr"}  # of Python and of pytester
