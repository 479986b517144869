"""Where a limit may be written, which place wins, and what a bad value says."""

import itertools

import pytest

CHECK = """
def test_right(gradcheck):
    gradcheck(square, X, grad=right)
"""


def limit(project, name="resolution"):
    """A limit in the one result of the last run."""
    (result,) = project.results()
    return next(use for use in result["limits"] if use["name"] == name)


ROUTES = {
    "pyproject, typed": ("pyproject.toml", "[tool.pytest]\nstrict = true\ngradcheck_{} = 0.25"),
    "pyproject, text": ("pyproject.toml", "[tool.pytest.ini_options]\ngradcheck_{} = '0.25'"),
    "pytest.toml": ("pytest.toml", "[pytest]\nstrict = true\ngradcheck_{} = 0.25"),
    "pytest.ini": ("pytest.ini", "[pytest]\ngradcheck_{} = 0.25"),
}


@pytest.mark.parametrize("name", ["resolution", "miss_probability"])
@pytest.mark.parametrize(("file", "text"), ROUTES.values(), ids=ROUTES)
def test_an_ini_value_is_a_number_in_every_file(project, request, file, text, name):
    if "strict" in text:  # a table of pytest 9
        request.getfixturevalue("needs_nine")
    project.file(file, text.format(name))
    project.tests(CHECK)
    project.run("-W", "error").assert_outcomes(passed=1)
    assert limit(project, name) == {
        "name": name,
        "value": 0.25,
        "source": "ini",
        "place": f"{file}: gradcheck_{name}",
    }


@pytest.mark.parametrize(("written", "value"), [("30s", "30s"), ("unlimited", "unlimited")])
@pytest.mark.parametrize(("file", "text"), ROUTES.values(), ids=ROUTES)
def test_an_ini_budget_may_be_seconds(project, request, file, text, written, value):
    if "strict" in text:
        request.getfixturevalue("needs_nine")
    quoted = written if file == "pytest.ini" else f"'{written}'"
    project.file(file, text.format("budget").replace("'", "").replace("0.25", quoted))
    project.tests(CHECK)
    project.run("-W", "error").assert_outcomes(passed=1)
    assert limit(project, "budget")["value"] == value
    assert limit(project, "budget")["source"] == "ini"


@pytest.mark.parametrize("file", ["pytest.ini", "pytest.toml"])
def test_an_ini_budget_may_be_a_number(project, request, file):
    if file == "pytest.toml":
        request.getfixturevalue("needs_nine")
        if pytest.version_tuple < (9, 2):
            pytest.skip("a TOML number beside words came with pytest 9.2")
    project.file(file, "[pytest]\ngradcheck_budget = 400")
    project.tests(CHECK)
    project.run("-W", "error").assert_outcomes(passed=1)
    assert limit(project, "budget")["value"] == 400.0


def test_an_ini_budget_that_is_neither_is_refused(project):
    project.file("pytest.ini", "[pytest]\ngradcheck_budget = soon")
    project.tests(CHECK)
    run = project.run()
    run.stderr.fnmatch_lines(["*pytest.ini: gradcheck_budget: 'soon' is not allowed*30s*unlimited"])


@pytest.mark.usefixtures("needs_nine")
def test_an_ini_value_may_be_a_word(project):
    project.file("pytest.toml", '[pytest]\nstrict = true\ngradcheck_vacuous = "warn"')
    project.tests("@pytest.mark.gradcheck\ndef test_idle():\n    pass")
    run = project.run("-W", "default::pytest_gradcheck.GradCheckWarning")
    run.assert_outcomes(passed=1, warnings=1)
    assert limit(project, "vacuous")["value"] == "warn"


def test_an_override_is_an_ini_value(project):
    project.tests(CHECK)
    project.run("-o", "gradcheck_resolution=0.5").assert_outcomes(passed=1)
    assert limit(project)["value"] == 0.5
    assert limit(project)["place"] == "-o gradcheck_resolution"


@pytest.mark.parametrize(
    ("addopts", "source", "place"),
    [
        ("--gradcheck-resolution=0.5", "flag", "--gradcheck-resolution"),
        ("-o gradcheck_resolution=0.5", "ini", "-o gradcheck_resolution"),
    ],
)
def test_the_environment_reaches_the_workers(project, monkeypatch, way, addopts, source, place):
    monkeypatch.setenv("PYTEST_ADDOPTS", addopts)
    project.tests(CHECK)
    project.run(*way).assert_outcomes(passed=1)
    assert limit(project) == {
        "name": "resolution",
        "value": 0.5,
        "source": source,
        "place": place,
    }


# From the weakest on, with the value that is written there.
PLACES = {"default": 0.01, "ini": 0.02, "flag": 0.03, "hook": 0.04, "marker": 0.05, "call": 0.06}


@pytest.mark.parametrize(("weaker", "stronger"), [*itertools.combinations(PLACES, 2)])
def test_the_stronger_place_wins(project, weaker, stronger):
    present = {weaker, stronger}
    args = []
    if "ini" in present:
        args += ["-o", "gradcheck_resolution=0.02"]
    if "flag" in present:
        args += ["--gradcheck-resolution=0.03"]
    if "hook" in present:
        project.file(
            "conftest.py",
            "def pytest_gradcheck_limits(item, check, limits):\n    return {'resolution': 0.04}",
        )
    marker = "@pytest.mark.gradcheck(resolution=0.05)" if "marker" in present else ""
    call = ", resolution=0.06" if "call" in present else ""
    project.tests(
        f"""
        {marker}
        def test_right(gradcheck):
            gradcheck(square, X, grad=right{call})
        """
    )
    project.run(*args).assert_outcomes(passed=1)
    assert limit(project)["source"] == stronger
    assert limit(project)["value"] == PLACES[stronger]


def test_what_is_written_nowhere_is_a_default(project):
    project.tests(CHECK)
    project.run().assert_outcomes(passed=1)
    (result,) = project.results()
    assert {use["source"] for use in result["limits"]} == {"default"}
    assert limit(project)["value"] == PLACES["default"]


def test_the_closest_marker_wins(project):
    project.tests(
        """
        pytestmark = pytest.mark.gradcheck(resolution=0.02, tolerance=1e-7)

        def test_module(gradcheck):
            gradcheck(square, X, grad=right)

        @pytest.mark.gradcheck(resolution=0.03)
        class TestClass:
            def test_class(self, gradcheck):
                gradcheck(square, X, grad=right)

            @pytest.mark.gradcheck(resolution=0.04)
            def test_method(self, gradcheck):
                gradcheck(square, X, grad=right)
        """
    )
    project.run().assert_outcomes(passed=3)
    found = {
        result["context"]["test"].rpartition("::")[2]: {
            use["name"]: use["value"] for use in result["limits"]
        }
        for result in project.results()
    }
    assert {name: uses["resolution"] for name, uses in found.items()} == {
        "test_module": 0.02,
        "test_class": 0.03,
        "test_method": 0.04,
    }
    # What a closer marker leaves open is still the farther one's.
    assert {uses["tolerance"] for uses in found.values()} == {1e-7}


@pytest.mark.usefixtures("needs_nine")
def test_each_limit_names_its_own_source(project, way):
    project.file("pytest.toml", "[pytest]\nstrict = true\ngradcheck_tolerance = 1e-7")
    project.file(
        "conftest.py",
        "def pytest_gradcheck_limits(item, check, limits):\n    return {'undecided': 'warn'}",
    )
    project.tests(
        """
        @pytest.mark.gradcheck(resolution=0.02)
        def test_right(gradcheck):
            gradcheck(square, X, grad=right, vacuous="warn")
        """
    )
    project.run(*way, "--gradcheck-miss-probability=1e-5").assert_outcomes(passed=1)
    (result,) = project.results()
    found = {use["name"]: (use["value"], use["source"], use["place"]) for use in result["limits"]}
    assert found == {
        "rounding": (1e-8, "default", "float64"),
        "at_kink": ("accept", "default", "float64"),
        "budget": ("unlimited", "default", "float64"),
        "resolution": (0.02, "marker", "@pytest.mark.gradcheck"),
        "miss_probability": (1e-5, "flag", "--gradcheck-miss-probability"),
        "tolerance": (1e-7, "ini", "pytest.toml: gradcheck_tolerance"),
        "undecided": ("warn", "hook", "pytest_gradcheck_limits"),
        "vacuous": ("warn", "call", "gradcheck(...)"),
    }


def test_a_limit_decides(project):
    # 2 % off: wrong by default, accepted by a tolerance of 5 %.
    project.tests(
        """
        def nearly(x):
            return 2.04 * x

        def test_strict(gradcheck):
            gradcheck(square, X, grad=nearly)

        @pytest.mark.gradcheck(tolerance=0.05, resolution=1.0, miss_probability=0.1)
        def test_lenient(gradcheck):
            gradcheck(square, X, grad=nearly)
        """
    )
    project.run().assert_outcomes(passed=1, failed=1)
    assert project.verdicts() == {"test_strict": ["fail"], "test_lenient": ["pass"]}


def test_the_device_is_that_of_every_check(project, way):
    project.tests(CHECK)
    project.run(*way, "--gradcheck-device=cpu").assert_outcomes(passed=1)
    run = project.run(*way, "--gradcheck-device=moon")
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["E *.UsageError: device='moon' is not known to NumPy; allowed: cpu"])


RANGE = "allowed: a number in (0, 1]"
REFUSED = f"is not allowed; {RANGE}"
BAD_ARGUMENTS = {
    "--gradcheck-tolerance=5": f"--gradcheck-tolerance: '5' is not allowed; {RANGE}",
    "--gradcheck-tolerance=nan": f"--gradcheck-tolerance: 'nan' is not allowed; {RANGE}",
    "--gradcheck-tolerance=loose": f"--gradcheck-tolerance: 'loose' is not allowed; {RANGE}",
    "--gradcheck-tolerance=": f"--gradcheck-tolerance: '' is not allowed; {RANGE}",
    "--gradcheck-miss-probability=0.6": "--gradcheck-miss-probability: '0.6' is not allowed; "
    "allowed: a number in (0, 0.5]",
    "--gradcheck-undecided=no": "--gradcheck-undecided: 'no' is not allowed; "
    "allowed: one of warn, fail",
    "--gradcheck-seed=abc": "--gradcheck-seed: 'abc' is not allowed; allowed: a whole number",
    "--gradcheck-report=xml:r.xml": "--gradcheck-report: 'xml:r.xml' is not allowed; "
    "allowed: FORMAT:PATH with FORMAT one of *json*",
    "--gradcheck-report=json": "--gradcheck-report: 'json' is not allowed; "
    "allowed: FORMAT:PATH with FORMAT one of *json*",
    "-ogradcheck_tolerance=5": f"-o gradcheck_tolerance: 5.0 is not allowed; {RANGE}",
    "-ogradcheck_tolerance=loose": f"-o gradcheck_tolerance: 'loose' is not allowed; {RANGE}",
    "-ogradcheck_vacuous=no": "-o gradcheck_vacuous: 'no' is not allowed; "
    "allowed: one of warn, fail",
}


def says(run, message):
    """Whether a run ended as a usage error with this one line."""
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([f"ERROR: pytest-gradcheck: {message}"])
    run.stdout.no_fnmatch_line("*Error*")
    return True


@pytest.mark.parametrize(("argument", "message"), BAD_ARGUMENTS.items(), ids=BAD_ARGUMENTS)
def test_a_bad_argument_is_a_usage_error(project, argument, message):
    project.tests(CHECK)
    assert says(project.run("-W", "error", argument), message)


BAD_FILES = {
    "too large": (
        "pytest.toml",
        "5",
        f"pytest.toml: gradcheck_tolerance: 5 {REFUSED}",
    ),
    "too small": ("pytest.toml", "0.0", f"*: gradcheck_tolerance: 0.0 {REFUSED}"),
    "not finite": ("pytest.toml", "nan", f"*: gradcheck_tolerance: nan {REFUSED}"),
    "a word": (
        "pytest.toml",
        "'loose'",
        f"pytest.toml: gradcheck_tolerance: 'loose' {REFUSED}",
    ),
    "a bool": (
        "pytest.toml",
        "true",
        f"pytest.toml: gradcheck_tolerance: True {REFUSED}",
    ),
    "a list": (
        "pytest.toml",
        "[0.1]",
        f"pytest.toml: gradcheck_tolerance: ?0.1? {REFUSED}",
    ),
    "classic": ("pytest.ini", "7", f"pytest.ini: gradcheck_tolerance: 7.0 {REFUSED}"),
    "classic word": (
        "pytest.ini",
        "loose",
        f"pytest.ini: gradcheck_tolerance: 'loose' {REFUSED}",
    ),
}


@pytest.mark.parametrize(("file", "value", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_ini_value_is_a_usage_error(project, request, file, value, message):
    if file == "pytest.toml":
        request.getfixturevalue("needs_nine")
    project.file(file, f"[pytest]\ngradcheck_tolerance = {value}")
    project.tests(CHECK)
    assert says(project.run("-W", "error"), message)


def test_a_bad_value_is_found_before_workers_start(project):
    project.tests(CHECK)
    assert says(
        project.run("-n", "2", "--gradcheck-tolerance=5"), BAD_ARGUMENTS["--gradcheck-tolerance=5"]
    )


BAD_CALLS = {
    "tolerance=5": f"gradcheck(...): tolerance: 5 {REFUSED}",
    "tolerance=True": f"gradcheck(...): tolerance: True {REFUSED}",
    "undecided='no'": "gradcheck(...): undecided: 'no' is not allowed; allowed: one of warn, fail",
}


@pytest.mark.parametrize(("argument", "message"), BAD_CALLS.items(), ids=BAD_CALLS)
def test_a_bad_call_argument_fails_its_test(project, argument, message):
    project.tests(f"def test_right(gradcheck):\n    gradcheck(square, X, grad=right, {argument})")
    run = project.run()
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines([f"E * pytest_gradcheck.UsageError: {message}"])
