"""A tour: right gradients pass, wrong ones fail and say why. Run ``python examples/demo.py``."""

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent
REPORTS = Path("gradcheck-reports")
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider")


def main():
    """Run both halves, then say in short what was to be seen; 0 if all came as expected."""
    REPORTS.mkdir(exist_ok=True)
    surprises = right_gradients() + wrong_gradients()
    say("what was found in each of the wrong ones")
    for name, found in results("wrong"):
        print(f"  {name:30}{found['headline'].removeprefix('wrong gradient of ')}")
    say("where to go from here")
    print("The code of all this is in examples/, to be read; each wrong gradient says in one line")
    print("what the mistake is. The reports hold every check in full, for other programs to read.")
    for surprise in surprises:
        print(f"UNEXPECTED: {surprise}")
    print(report("examples"))
    print(report("wrong"))
    return 1 if surprises else 0


def right_gradients():
    """Derivatives of real code, all right; returns what was not."""
    say("right gradients: pytest examples")
    status = pytest(EXAMPLES, "examples")
    return [] if status == 0 else [f"pytest examples ended with status {status}, not 0"]


def wrong_gradients():
    """One mistake a test, and each has to be found; returns what was not."""
    say("wrong gradients: pytest examples/wrong")
    status = pytest(EXAMPLES / "wrong", "wrong", "--tb=short")
    surprises = [] if status == 1 else [f"pytest examples/wrong ended with status {status}, not 1"]
    verdicts = [(name, found["verdict"]) for name, found in results("wrong")]
    unjudged = written() - {name for name, _ in verdicts}
    surprises += [f"{name} brought no verdict" for name in sorted(unjudged)]
    return surprises + [
        f"{name} brought {what}, not fail" for name, what in verdicts if what != "fail"
    ]


def written():
    """Names of the tests in the gallery."""
    lines = (EXAMPLES / "wrong" / "test_wrong_gradients.py").read_text("utf-8").splitlines()
    return {line[4 : line.index("(")] for line in lines if line.startswith("def test_")}


def pytest(path, name, *options):
    """Exit status of a run of pytest that writes a report, never an old one."""
    report(name).unlink(missing_ok=True)
    command = [*PYTEST, str(path), f"--gradcheck-report=json:{report(name)}", *options]
    return subprocess.run(command, check=False).returncode


def report(name):
    """Path of a report."""
    return REPORTS / f"{name}.json"


def results(name):
    """Pairs of a test's name and a result of it, from the report."""
    if not report(name).exists():
        return []
    tests = json.loads(report(name).read_text("utf-8"))["tests"]
    return [
        (test["nodeid"].rpartition("::")[2], found) for test in tests for found in test["results"]
    ]


def say(headline):
    """A heading, flushed so that it stands before what pytest prints."""
    print(f"\n### {headline}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
