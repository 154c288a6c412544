"""The built package has all that a recipe needs, so that it runs where there is no checkout."""

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from ssl_blocks.recipes import RECIPES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    (file,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return zipfile.ZipFile(file)


def test_wheel_holds_every_recipe_and_preset(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for name, recipe in RECIPES.items():
        presets = {str(file.relative_to(ROOT)) for file in recipe.preset_files().values()}
        assert presets
        assert {f"ssl_blocks/recipes/{name}.py", *presets} <= names
    assert not any(name.startswith(("examples", "tests")) for name in names)


def test_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    (file,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "ssl-blocks = ssl_blocks.__main__:main" in wheel.read(file).decode()
