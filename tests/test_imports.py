"""Imports point one way, and the plain import stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ssl_blocks"
MODULES = {
    ".".join(("ssl_blocks", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# layers from the ground up: a module may import its own layer and those below
LAYERS = [
    {"values", "randomness", "files", "modes", "quiet", "lazy", "program"},
    {"parts"},
    {"encoders"},
    {"objectives"},
    {"data", "testing", "visualize"},
    {"engine"},
    {"evaluation"},
    {"pretrain"},
    {"evaluate", "cli"},
    {"recipes"},
]
HEAVY = ("pytorch_lightning", "lightly", "matplotlib", "sklearn", "transformers")


def layer(module):
    """Height of a module; the package itself, which only gathers names, is on top."""
    part = module.split(".")[1] if "." in module else ""
    return next((height for height, names in enumerate(LAYERS) if part in names), None if part else len(LAYERS))


def imported(module):
    """Modules of the package that a module imports anywhere, functions included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ssl_blocks")
        elif isinstance(node, ast.ImportFrom):
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


def test_no_part_imports_objectives_or_training():
    below = [m for m in MODULES if layer(m) < layer("ssl_blocks.objectives")]
    assert len(below) > 12
    for module in below:
        for name in imported(module):
            assert name.split(".")[1] not in ("objectives", "training", "evaluation", "data"), (module, name)


def test_values_import_nothing_of_the_package():
    assert not list(imported("ssl_blocks.values"))


def test_only_the_package_itself_is_free_to_gather_names():
    assert "ssl_blocks.objectives" in set(imported("ssl_blocks"))  # the reader of imports sees something
    assert not any(name == "ssl_blocks" for m in MODULES if layer(m) < 4 for name in imported(m))


def test_the_plain_import_loads_nothing_heavy():
    script = f"import sys, ssl_blocks; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_every_public_name_exists_once_and_in_order():
    import ssl_blocks

    assert ssl_blocks.__all__ == sorted(set(ssl_blocks.__all__))
    assert all(hasattr(ssl_blocks, name) for name in ssl_blocks.__all__)
