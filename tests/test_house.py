"""The rules of the house, read from the source: imports, sizes, exports, documented findings."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "pytest_gradcheck"
DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS / name for name in ("findings.md", "clipping.md", "steps.md")]
FILES = sorted(HOUSE.rglob("*.py"))
LONGEST = 300

VALUES = {"results", "limits", "errors"}
SHARED = {*VALUES, "backends", "numpy"}
JAX = {
    "jax",
    "backends.jax_arrays",
    "backends.jax_modules",
    "backends.jax_replayed",
    "backends.jax_runs",
    "backends.jax_contracts",
    "backends.jax_cuts",
    "backends.jax_leaves",
    "backends.jax_states",
    "backends.jax_alone",
    "backends.jax_draws",
    "backends.jax_wide",
    "backends.jax_modes",
    "backends.jax_eval",
    "backends.jax_given",
    "backends.jax_origin",
    "backends.jax_loss",
    "backends.jax_primitives",
    "backends.jax_probe",
    "backends.jax_programs",
    "backends.jax_sites",
    "backends.jax_records",
    "backends.jax_changes",
    "backends.jax_quotients",
    "backends.jax_turns",
    "backends.jax_weights",
    "backends.jax_tape",
    "backends.jax_updates",
    "backends.jax_walk",
    "backends.jax_clips",
    "backends.jax_places",
    "backends.jax_hurry",
    "backends.jax_steps",
}
TORCH = {
    "torch",
    "backends.torch_state",
    "backends.torch_flags",
    "backends.torch_functional",
    "backends.torch_contracts",
    "backends.torch_modes",
    "backends.torch_overrides",
    "backends.torch_sparse",
    "backends.torch_asserts",
    "backends.torch_cuts",
    "backends.torch_flow",
    "backends.torch_arrivals",
    "backends.torch_holdings",
    "backends.torch_forwards",
    "backends.torch_records",
    "backends.torch_refused",
    "backends.torch_passes",
    "backends.torch_resets",
    "backends.torch_gates",
    "backends.torch_fresh",
    "backends.torch_given",
    "backends.torch_graph",
    "backends.torch_heard",
    "backends.torch_input",
    "backends.torch_loss",
    "backends.torch_ops",
    "backends.torch_origin",
    "backends.torch_probe",
    "backends.torch_scene",
    "backends.torch_seeds",
    "backends.torch_samples",
    "backends.torch_widths",
    "backends.torch_sizes",
    "backends.torch_slopes",
    "backends.torch_time",
    "backends.torch_tracked",
    "backends.torch_contents",
    "backends.torch_moments",
    "backends.torch_clips",
    "backends.torch_clip_functions",
    "backends.torch_events",
    "backends.torch_optimizers",
    "backends.torch_record",
    "backends.torch_resumed",
    "backends.torch_steps",
    "backends.torch_trials",
    "backends.torch_values",
    "backends.torch_watch",
    "backends.torch_shape",
    "backends.torch_witness",
    "backends.torch_draws",
    "backends.torch_wide",
}
# room: what it may import at the top of a file, and what besides inside functions. The standard
# library is free to all, and a room may import itself. docs/architecture.md says why.
ROOMS = {
    "": ((), ()),
    "results": (VALUES, ()),
    "limits": (VALUES, ()),
    "errors": (VALUES, ()),
    "hookspecs": (("pytest",), ()),
    "numerics": ({*VALUES, "numpy", "scipy"}, ()),
    "backends": (SHARED, ()),
    "backends.numpy": (SHARED, ()),
    # Every backend may use NumPy, and so the file that knows NumPy's arrays.
    "backends.torch": ({*SHARED, *TORCH}, ()),
    **{part: ({*SHARED, *TORCH, "backends.numpy"}, ()) for part in TORCH - {"torch"}},
    "backends.jax": ({*SHARED, *JAX, "backends.numpy"}, ()),
    **{part: ({*SHARED, *JAX}, ()) for part in JAX - {"jax"}},
    "backends.numpy_probe": ({*SHARED, "backends.numpy", "backends.numpy_records"}, ()),
    "backends.jax_probe": ({*SHARED, *JAX, "backends.jax"}, ()),  # for its guard
    # A functional step is the same in JAX as in NumPy.
    "backends.numpy_steps": ({*SHARED, "backends.numpy", "backends.numpy_batches"}, ()),
    "backends.jax_steps": ({*SHARED, *JAX, "backends.numpy_steps"}, ()),
    "checks": ({*SHARED, "numerics", "scipy"}, ()),
    "reports": (VALUES, ()),
    "collector": ({"results", "limits"}, ()),
    "verbs": ({*VALUES, "collector", "reports.text"}, {"checks"}),
    "plugin": (
        {*VALUES, "", "collector", "hookspecs", "pytest", "reports"},
        {"backends", "verbs", "tqdm"},  # a bar on the terminal is drawn by a library
    ),
    "testing": ({*SHARED, "numerics"}, ()),
    "testing_flow": (SHARED, ()),
}


def name_of(path):
    """Dotted name inside the house: ``checks.probe``, ``backends``, and empty for the package."""
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(path) for path in FILES}


def room_of(name):
    """A backend is a room of its own; what they share is the room ``backends``."""
    if name in ROOMS:
        return name
    return name.partition(".")[0]


def imports(tree):
    """Pairs of imported name and whether it stands inside a function; type-only ones left out."""
    found = []

    def walk(node, is_lazy):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes = node.orelse
        else:
            found.extend((name, is_lazy) for name in imported(node))
            nodes = ast.iter_child_nodes(node)
        for child in nodes:
            walk(child, is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    walk(tree, False)
    return found


def imported(node):
    if isinstance(node, ast.Import):
        return [inside(alias.name) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert not node.level, "imports are absolute"
    home = inside(node.module)
    deeper = [f"{home}.{alias.name}".lstrip(".") for alias in node.names]
    return [
        name if name in NAMES and node.module.startswith(HOUSE.name) else home for name in deeper
    ]


def inside(module):
    """Name in the house, or the top-level package of somebody else's module."""
    top, _, rest = module.partition(".")
    return rest if top == HOUSE.name else top


def violations(name, source):
    """The imports that a file of the given name may not have."""
    room = room_of(name)
    top, lazy = ROOMS[room]
    refused = []
    for target, is_lazy in imports(ast.parse(source)):
        allowed = {*top, *(lazy if is_lazy else ())}
        if target in sys.stdlib_module_names and target not in NAMES:
            continue
        if room_of(target) == room or not allowed.isdisjoint({target, room_of(target)}):
            continue
        refused.append(target)
    return refused


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_table(path):
    assert violations(name_of(path), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("results", "import numpy as np"),
        ("limits", "from pytest_gradcheck.checks import gradient"),
        ("numerics.power", "import torch"),
        ("numerics.power", "from pytest_gradcheck.backends import Array"),
        ("backends.numpy", "import torch"),
        ("backends.jax", "from pytest_gradcheck.backends.torch import BACKEND"),
        ("backends.torch", "from pytest_gradcheck.numerics import precision"),
        ("backends.tree", "import jax.numpy as jnp"),
        ("checks.plan", "import pytest"),
        ("checks.plan", "from pytest_gradcheck.backends.torch import BACKEND"),
        ("checks.plan", "from pytest_gradcheck.reports import text"),
        ("checks.plan", "def f():\n    import torch"),
        ("reports.text", "import numpy"),
        ("reports.text", "from pytest_gradcheck import checks"),
        ("plugin.items", "from pytest_gradcheck import backends"),
        ("plugin.items", "from pytest_gradcheck.verbs.record import raise_for"),
        ("plugin.items", "def f():\n    from pytest_gradcheck.numerics import power"),
        ("collector", "from pytest_gradcheck.errors import UsageError"),
        ("verbs.gradient", "from pytest_gradcheck.checks.gradient import check"),
        ("verbs.gradient", "from pytest_gradcheck.reports import json"),
        ("", "from pytest_gradcheck.verbs.gradient import check_gradient"),
    ],
)
def test_a_forbidden_import_is_seen(name, line):
    assert violations(name, line) != []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plugin.items", "def f():\n    from pytest_gradcheck import backends"),
        ("verbs", "def f():\n    from pytest_gradcheck.checks.gradient import check"),
        ("hookspecs", "if TYPE_CHECKING:\n    from pytest_gradcheck.backends import Entry"),
        ("reports.text", "import json"),
    ],
)
def test_an_allowed_import_is_not(name, line):
    assert violations(name, line) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_long_files_say_why(path):
    source = path.read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert len(source.splitlines()) <= LONGEST or f"{LONGEST} lines" in docstring


EXPORTING = [name_of(path) for path in FILES if "\n__all__ = " in path.read_text("utf-8")]


@pytest.mark.parametrize("name", EXPORTING)
def test_exports_resolve_and_are_sorted(name):
    module = importlib.import_module(f"{HOUSE.name}.{name}".rstrip("."))
    assert list(module.__all__) == sorted(set(module.__all__))
    assert [export for export in module.__all__ if not hasattr(module, export)] == []


# --- finding codes ----------------------------------------------------------------------------


def codes(source, patterns):
    """Every code that a file can give a finding.

    Args:
        source: The text of the file.
        patterns: What may stand in the place of ``culprit.pattern`` inside a code.
    """
    found = set()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            for node in given_codes(call):
                found |= words(node, function, patterns)
    return found


def given_codes(call):
    if not isinstance(call, ast.Call):
        return []
    called = ast.unparse(call.func).rpartition(".")[2]
    if called in ("WrongDerivative", "Cause", "Suspect"):
        return call.args[:1]
    if called in ("Finding", "replace"):
        return [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    return []


# Codes that stand where these values are made.
ELSEWHERE = (
    "error.code",
    "variant.code",
    "cause.code",
    "suspect.code",
    "first.code",
    "refused.code",
)


def words(node, function, patterns):
    """The texts that an expression can be; an assertion error where that cannot be read."""
    if isinstance(node, ast.Constant):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return words(node.body, function, patterns) | words(node.orelse, function, patterns)
    if isinstance(node, ast.JoinedStr):
        head, tail = node.values
        assert ast.unparse(tail.value) == "culprit.pattern"
        return {head.value + pattern for pattern in patterns}
    if isinstance(node, ast.Attribute):
        assert ast.unparse(node) in ELSEWHERE, ast.unparse(node)
        return set()
    if isinstance(node, ast.Subscript):  # a code out of a table of words
        words_of = importlib.import_module(f"{HOUSE.name}.checks.flow.words")
        return set(getattr(words_of, ast.unparse(node.value)).values())
    assert isinstance(node, ast.Name), f"write the code as a text: {ast.unparse(node)}"
    values = assigned(node.id, function)
    assert values, f"{node.id} is not assigned in {function.name}"
    return set().union(*(words(value, function, patterns) for value in values))


def assigned(name, function):
    """The expressions that a function assigns to a name, alone or in a tuple."""
    values = []
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
            else:
                pairs = [(target, node.value)]
            values += [v for t, v in pairs if isinstance(t, ast.Name) and t.id == name]
    return values


def patterns():
    """What ``checks/locate.py`` can call an error, without ``other``, which has its own code."""
    return set(importlib.import_module(f"{HOUSE.name}.checks.accuse").PATTERNS)


CONTRACT = re.compile(r'"((?:backward|forward|gradient)-[a-z-]+)"')
CONTRACTS = (
    "checks/contracts",
    "checks/handwritten",
    "backends/torch_contracts",
    "backends/jax_contracts",
    "backends/torch_refused",
    "backends/jax_refused",
)


def emitted():
    rooms = [*HOUSE.glob("checks/**/*.py"), *HOUSE.glob("plugin/*.py")]
    found = set().union(*(codes(path.read_text("utf-8"), patterns()) for path in rooms))
    contracts = (HOUSE / f"{name}.py" for name in CONTRACTS)
    return found.union(*(CONTRACT.findall(path.read_text("utf-8")) for path in contracts))


def test_every_finding_is_documented_and_none_that_is_gone():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    documented = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    assert sorted(documented) == sorted(emitted())


def test_every_documented_finding_says_severity_and_remedy():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    for section in re.split(r"^##+ ", text, flags=re.MULTILINE):
        if section.startswith("`"):
            assert re.search(r"^Severity: `(fail|warn|note)`", section, re.MULTILINE), section
            assert re.search(r"^What to do: [a-z].*\.$", section, re.MULTILINE | re.DOTALL), section


def test_codes_are_read_in_every_form():
    source = """
def f(culprit, error, x):
    what = "jump" if x else "kink"
    code, why = "borderline", "because"
    Finding(code=what), Finding(code=code), Finding(code="plain")
    Finding(code=f"gradient-{culprit.pattern}" if x else "wrong-gradient")
    raise WrongDerivative("gradient-shape", "x", "message")
"""
    expected = {"jump", "kink", "borderline", "plain", "gradient-sign", "wrong-gradient"}
    assert codes(source, {"sign"}) == expected | {"gradient-shape"}


def test_a_code_that_cannot_be_read_is_refused():
    with pytest.raises(AssertionError, match="write the code as a text"):
        codes("def f(x):\n    Finding(code=x())", set())
