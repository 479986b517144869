"""The wheel and the sdist carry everything, and work in a fresh environment with any frameworks."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SAMPLES = {
    "numpy": """
        import numpy as np

        def test_numpy(gradcheck):
            gradcheck(lambda x: (x**2).sum(), np.ones(3), grad=lambda x: 2 * x)
    """,
    "torch": """
        import pytest

        torch = pytest.importorskip("torch")

        def test_torch(gradcheck):
            gradcheck(torch.sin, torch.ones(3))
    """,
    "jax": """
        import pytest

        jax = pytest.importorskip("jax")

        def test_jax(gradcheck):
            gradcheck(jax.numpy.sin, jax.numpy.ones(3))
    """,
    "named": """
        import numpy as np
        import pytest

        from pytest_gradcheck import UsageError, check_gradient

        @pytest.mark.parametrize("name", ["torch", "jax"])
        def test_named(name):
            try:
                __import__(name)
            except ImportError:
                with pytest.raises(UsageError, match="is not installed: pip install 'pytest-grad"):
                    check_gradient(np.sin, 1.0, backend=name)
    """,
}

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def fresh(built, tmp_path_factory):
    """A fresh environment with the wheel in it; its needs are lent from the running one."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    show = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    run = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True)
    lent = sysconfig.get_paths()["purelib"]
    Path(run.stdout.strip(), "lent.pth").write_text(lent + "\n")
    return python


def test_the_wheel_carries_types_schema_licence_and_entry_point(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
        entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "pytest_gradcheck/py.typed" in names
    assert "pytest_gradcheck/reports/schema.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "gradcheck = pytest_gradcheck.plugin" in entry
    assert "Classifier: Framework :: Pytest" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "License-Expression: MIT" in metadata
    assert not [name for name in names if name.startswith("tests/")]


def test_the_sdist_builds_the_same_wheel_again(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    assert any(name.endswith("tests/conftest.py") for name in names)
    (source,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    assert list(tmp_path.glob("*.whl"))


@pytest.mark.parametrize(
    ("present", "passed", "skipped"),
    [((), 3, 2), (("torch",), 4, 1), (("jax",), 4, 1), (("torch", "jax"), 5, 0)],
    ids=["none", "torch", "jax", "both"],
)
def test_the_installed_plugin_works_with_any_frameworks(fresh, pytester, present, passed, skipped):
    # Looked up, not imported: pytester forgets modules, and torch cannot be loaded twice.
    if missing := [name for name in present if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    blocked = {"torch", "jax", "jaxlib"} - {*present, *(["jaxlib"] if "jax" in present else [])}
    pytester.makepyfile(**{f"test_{name}": source for name, source in SAMPLES.items()})
    pytester.makepyfile(blocker=BLOCKER.format(blocked=blocked))
    result = pytester.run(
        fresh, "-m", "pytest", "-p", "blocker", "-p", "no:randomly", "-p", "no:benchmark",
        "-p", "no:pytest_torch", "-p", "no:jaxtyping",
    )  # fmt: skip
    result.assert_outcomes(passed=passed, skipped=skipped)
    result.stdout.fnmatch_lines(["plugins:*gradcheck-*"])
