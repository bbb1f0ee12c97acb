"""Imports point one way, and importing the package stays cheap."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import apex_jax

PACKAGE = pathlib.Path(apex_jax.__file__).parent
DESIGN = PACKAGE.parent / "docs" / "design.md"


def modules():
    """Every module of the package by its name in the table, `models/convnext`."""
    paths = (p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))
    return sorted(
        p.with_suffix("").as_posix() for p in paths if p.name != "__init__.py"
    )


def table():
    """The modules in the order of the first column of the design page's table."""
    lines = DESIGN.read_text().splitlines()
    start = next(
        i for i, line in enumerate(lines) if re.match(r"\|\s*module\s*\|", line)
    )
    order = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        order += re.findall(r"`([\w/]+)`", line.split("|")[1])
    return order


def imported(module):
    """The package's modules that a module imports, inside functions too."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    known, found = set(modules()), set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names.append(node.module)
        for name in names:
            path = name.replace(".", "/")
            if path.startswith("apex_jax/") and path[len("apex_jax/") :] in known:
                found.add(path[len("apex_jax/") :])
    return found


def test_the_table_is_read():
    order = table()
    assert len(order) == len(set(order))
    assert {"purity", "models/convnext", "metrics"} <= set(order)
    assert {"disentangle", "schemes"} <= imported("bank")


# A notebook asks an explanation itself for its picture.
AGAINST_THE_FLOW = {("explanation", "report")}


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_stands_above_it(module):
    order = table()
    assert module in order, f"docs/design.md does not list {module}"
    above = set(order[: order.index(module)])
    allowed = {there for here, there in AGAINST_THE_FLOW if here == module}
    below = imported(module) - above - allowed
    assert not below, f"{module} imports {sorted(below)}, which stand below it"


# `audio` offers the front end's names as its own.
@pytest.mark.parametrize("module", [m for m in modules() if m != "audio"])
def test_the_package_imports_its_modules_not_their_names(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("apex_jax."):
            base = PACKAGE / node.module.removeprefix("apex_jax.").replace(".", "/")
            assert base.is_dir(), f"{module}: from {node.module} import a name"


def test_the_library_does_not_know_the_experiments():
    for module in modules():
        text = (PACKAGE / f"{module}.py").read_text()
        assert not re.search(r"^\s*(from|import) (experiments|benchmarks)", text, re.M)


def test_importing_every_module_loads_nothing_heavy():
    """Torch and TensorFlow never; plots, metrics and decoders only when used."""
    names = [f"apex_jax.{m.replace('/', '.')}" for m in modules()]
    never = ["torch", "tensorflow", "tensorflow_datasets", "transformers"]
    late = ["matplotlib", "sklearn", "librosa", "soundfile", "safetensors", "grain"]
    late += ["lime", "skimage", "jinja2", "playwright"]
    heavy = never + late
    code = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
