"""Imports point one way, and the plain import stays light."""

import ast
import json
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import ssl_blocks
from ssl_blocks.lazy import shown_imports
from ssl_blocks.program import VERSION

PACKAGE = Path(__file__).parents[1] / "ssl_blocks"
MODULES = {
    ".".join(("ssl_blocks", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# layers from the ground up: a module may import its own layer and those below
LAYERS = [
    {
        "bounds",
        "doors",
        "glance",
        "grid",
        "values",
        "constants",
        "noise",
        "randomness",
        "files",
        "modes",
        "quiet",
        "lazy",
        "program",
        "code",
        "text",
        "yaml_files",
    },
    {"parts"},
    {"encoders"},
    {"objectives"},
    {"data", "testing", "visualize"},
    {"engine"},
    {"evaluation"},
    {"pretrain"},
    {"evaluate", "cli"},
    {"recipes"},
    {"deploy"},
    {"__main__"},
]
LAZY = [name for name, path in MODULES.items() if path.name == "__init__.py" and "lazily(" in path.read_text()]
TOP = shown_imports(MODULES["ssl_blocks"].read_text())  # where each public name comes from


def layer(module):
    """Height of a module; the package itself, which only gathers names, is on top."""
    part = module.split(".")[1] if "." in module else ""
    return next((height for height, names in enumerate(LAYERS) if part in names), None if part else len(LAYERS))


@cache
def imported(module):
    """Modules of the package that a module imports anywhere, functions included.

    Of ``import ssl_blocks as sb`` those count from which the names come that are used of it.
    """
    return list(_imported(module))


def _imported(module):
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text())))
    names = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    whole = {alias.asname or alias.name for alias in names if alias.name == "ssl_blocks"}
    yield from (alias.name for alias in names if alias.name.startswith("ssl_blocks."))
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
            home = TOP[node.attr]
            yield f"ssl_blocks.{node.attr}" if home == "ssl_blocks" else home
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if (node.module or "").split(".")[0] == "ssl_blocks":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    height = layer(module)
    assert height is not None, f"{module} has no layer: name it in LAYERS"
    above = {name for name in imported(module) if layer(name) > height}
    assert not above, f"{module} imports {sorted(above)} from above itself"


def test_no_part_imports_objectives_or_what_trains():
    below = [m for m in MODULES if layer(m) < layer("ssl_blocks.objectives")]
    assert len(below) > 12
    for module in below:
        for name in imported(module):
            assert name.split(".")[1] not in ("objectives", "engine", "pretrain", "evaluation", "data"), (module, name)


def reached(module):
    """Modules of the package that importing a module loads, by whatever way."""
    found, ahead = set(), [module]
    while ahead:
        ahead += [name for name in imported(ahead.pop()) if name not in found and not found.add(name)]
    return found


def test_encoders_import_no_decoder():
    decoders = {"ssl_blocks.parts.decode", "ssl_blocks.parts.query_stream"}
    assert decoders <= set(MODULES)
    assert decoders & reached("ssl_blocks.objectives")  # the walk sees something
    encoders = [module for module in MODULES if module.startswith("ssl_blocks.encoders")]
    found = {module: decoders & reached(module) for module in encoders if decoders & reached(module)}
    assert not found


def test_values_import_nothing_of_the_package_but_grids_and_checks():
    checks = {"ssl_blocks.bounds", "ssl_blocks.doors"}
    assert set(imported("ssl_blocks.doors")) == {"ssl_blocks.glance"}
    assert not [*imported("ssl_blocks.bounds"), *imported("ssl_blocks.glance")]
    assert set(imported("ssl_blocks.grid")) < checks
    assert set(imported("ssl_blocks.values")) == {"ssl_blocks.grid", *checks}


def test_only_the_package_itself_is_free_to_gather_names():
    assert "ssl_blocks.objectives" in set(imported("ssl_blocks"))  # the reader of imports sees something
    assert not any(name == "ssl_blocks" for m in MODULES for name in imported(m))


def test_a_source_tree_that_was_never_installed_knows_its_version():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert ssl_blocks.__version__ == VERSION == project["version"]
    asking = [name for name, path in MODULES.items() if "importlib.metadata" in path.read_text()]
    assert not asking, f"{asking} would end a run where the package is not installed"


def test_names_used_of_the_whole_package_count_as_imports():
    assert {"ssl_blocks.encoders", "ssl_blocks.data", "ssl_blocks.parts.decode"} <= set(
        imported("ssl_blocks.pretrain.config")
    )


# print which of them are loaded, after each step
LOADED = """
import json, sys
loaded = {}
def note(step):
    names = ("torch", "timm", "pytorch_lightning", "lightly", "matplotlib", "sklearn", "transformers")
    loaded[step] = [name for name in names if name in sys.modules]
"""


@pytest.mark.process
def test_help_and_the_plain_import_wait_for_nothing():
    script = """
import contextlib, io
import ssl_blocks
note("plain import")
from ssl_blocks.__main__ import main
from ssl_blocks.recipes import RECIPES
from ssl_blocks.deploy.cli import COMMANDS
with contextlib.redirect_stdout(io.StringIO()) as text:
    for argv in [["--help"], ["evaluate", "--help"], *([name, "--help"] for name in [*RECIPES, *COMMANDS])]:
        assert main(argv) == 0
        note(" ".join(argv))
assert text.getvalue().count("--trainer.epochs N") == len(RECIPES)
print(json.dumps(loaded))
"""
    run = subprocess.run(
        [sys.executable, "-c", LOADED + script], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    assert len(loaded) > 8
    assert {step: found for step, found in loaded.items() if found} == {}


def test_all_public_names_load_nothing_that_composing_does_without(bare):
    loaded = json.loads(bare(LOADED + 'note("all public names")\nprint(json.dumps(loaded))'))
    assert loaded["all public names"] == ["torch", "timm"]


@pytest.mark.parametrize("name", LAZY)
def test_lazy_packages_export_what_they_show_to_type_checkers(name):
    package, shown = import_module(name), shown_imports(MODULES[name].read_text())
    assert sorted(shown) == sorted(set(package.__all__))
    for export, home in shown.items():
        value = getattr(package, export)
        assert value is (import_module(f"{name}.{export}") if home == name else getattr(import_module(home), export))
        assert home == name or f"{name}.{export}" not in MODULES, f"{name}.{export} is a module, too"
        assert export in dir(package)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


def test_every_public_name_exists_once_and_in_order():
    import ssl_blocks

    assert ssl_blocks.__all__ == sorted(set(ssl_blocks.__all__))
    assert all(hasattr(ssl_blocks, name) for name in ssl_blocks.__all__)
