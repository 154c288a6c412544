"""Recipes by name: methods that a command pretrains, each assembled in a file of its own, with presets beside it."""

from typing import Any

from ssl_blocks.pretrain.recipe import Recipe
from ssl_blocks.recipes import apl, combined, esvit, mae, randsac, saim

RECIPES: dict[str, Recipe[Any]] = {
    module.RECIPE.name: module.RECIPE for module in (randsac, mae, saim, apl, esvit, combined)
}

__all__ = ["RECIPES"]
