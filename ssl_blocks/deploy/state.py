"""The objective of a state, by the recipe that it names."""

from pathlib import Path
from typing import Any

from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.recipe import Recipe
from ssl_blocks.pretrain.state import load_state, recipe_of
from ssl_blocks.recipes import RECIPES

KNOWN = {recipe.config.__name__: recipe for recipe in RECIPES.values()}


def is_known(folder: str | Path) -> bool:
    """Whether a state is of a recipe of this library."""
    return recipe_of(folder) in KNOWN


def load_objective(folder: str | Path, *, recipe: Recipe[Any] | None = None) -> Objective:
    """Load a whole objective, decoder and parts included, from what ``ssl-blocks export RUN --format state`` wrote.

    It is in evaluation mode. Of the folder no code is run: the recipe is one of this library's, or given.

    Args:
        folder: a state.
        recipe: of your own code; ``None``: the one of this library that the state names.

    Raises:
        FileNotFoundError: if the folder holds no state.
        ValueError: if it is damaged, or its recipe is none of this library's.
    """
    name = recipe_of(folder)
    found = KNOWN.get(name) if recipe is None else recipe
    if found is None:
        raise ValueError(f"folder={str(folder)!r} is of {name}, none of this library's recipes: give recipe=")
    return load_state(folder, found)
