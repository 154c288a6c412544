"""Write the tables of docs/recipes.md out of the presets that they name: run as ``python docs/make_tables.py``."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_blocks.cli.arguments import kind_of, sub_models
from ssl_blocks.recipes import RECIPES

PAGE = Path(__file__).with_name("recipes.md")
PRESETS = {name: file for recipe in RECIPES.values() for name, file in recipe.preset_files().items()}
OF_KINDS = re.compile(r"<!-- kinds -->.*?<!-- end -->", re.DOTALL)
KINDS = ("vit", "torchvision", "transformers", "map", "original")
TABLE = re.compile(r"<!-- table ([\w ]+) -->.*?<!-- end -->", re.DOTALL)
ROWS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "data": lambda c: c["data"]["name"].partition(":")[0],
    "image size": lambda c: c["data"].get("image_size", "own"),
    "patch": lambda c: c["encoder"].get(
        "patch_size", "the model's" if "crops" in c or "name" in c["encoder"] else None
    ),
    "grid": lambda c: c.get("grid"),
    "crop": lambda c: c.get("crop"),
    "encoder (depth × width × heads)": lambda c: None if "crops" in c else _layers(c["encoder"]),
    "encoder (stages; width)": lambda c: _stages(c["encoder"]) if "crops" in c else None,
    "small crops": lambda c: f"{c['crops']['num_local']} of {c['crops']['local_size']} px" if "crops" in c else None,
    "classes of the heads": lambda c: c["head"]["out_dim"] if "crops" in c else None,
    "region weight": lambda c: c.get("region_weight", 0.5) if "crops" in c else None,
    "KoLeo weight": lambda c: c.get("koleo_weight", 0.0) if "crops" in c else None,
    "decoder (depth × width × heads)": lambda c: (
        " × ".join(
            str(c["decoder"].get(k, c["encoder"].get("width", "the encoder's"))) for k in ("depth", "width", "heads")
        )
        if "decoder" in c
        else None
    ),
    "query blocks": lambda c: c.get("query_depth"),
    "dropout": lambda c: c["encoder"].get("dropout", 0.0) if "grid" in c else None,
    "patch dropout": lambda c: c.get("patch_dropout"),
    "segments": lambda c: c["segments"]["kind"] if "segments" in c else None,
    "sides or counts": lambda c: ", ".join(map(str, _sizes(c["segments"]))) if "segments" in c else None,
    "hidden": lambda c: f"{c.get('mask_ratio', 0.75):.0%}" if c["name"].startswith("mae") else None,
    "normalised target": lambda c: (
        None if "grid" in c or "crops" in c else "yes" if c.get("normalize_target", True) else "no"
    ),
    "base learning rate": lambda c: f"{c['optimizer']['base_lr']:g}",
    "batch": lambda c: c["optimizer"]["batch_size"],
    "weight decay": lambda c: _decay(c["optimizer"]),
    "warm-up epochs": lambda c: c["optimizer"]["warmup_epochs"],
    "epochs": lambda c: c["trainer"]["epochs"],
}


def _layers(encoder: dict[str, Any]) -> str:
    if "depth" not in encoder:
        return f"`{encoder['name']}`"
    return " × ".join(str(encoder.get(size, "a patch's values")) for size in ("depth", "width", "heads"))


def _stages(encoder: dict[str, Any]) -> str:
    if "depth" in encoder:
        return f"ViT {_layers(encoder)}"
    if "stage_depths" not in encoder:
        return "Swin-T"
    return f"{' + '.join(map(str, encoder['stage_depths']))}; {encoder['width']}"


def _decay(optimizer: dict[str, Any]) -> str:
    start, end = optimizer.get("weight_decay", 0.05), optimizer.get("weight_decay_end")
    return f"{start}" if end is None else f"{start} to {end}"


def _sizes(segments: dict[str, Any]) -> list[int]:
    sizes: list[int] = segments.get("sides") or segments["counts"]
    return sizes


def table(names: Sequence[str]) -> str:
    """A Markdown table with a column per preset."""
    presets = [yaml.safe_load(PRESETS[name].read_text()) for name in names]
    lines = [["", *(name.partition("_")[2] for name in names)], ["---"] * (len(names) + 1)]
    rows = {row: [read(preset) for preset in presets] for row, read in ROWS.items()}
    lines += [[row, *map(str, values)] for row, values in rows.items() if any(value is not None for value in values)]
    return _written(lines)


def kinds() -> str:
    """Which recipe trains which kind of encoder."""
    lines = [["recipe", *KINDS], ["---"] * (1 + len(KINDS))]
    for name, recipe in RECIPES.items():
        trained = {kind_of(model) for model in sub_models(recipe.config.model_fields["encoder"])}
        lines.append([name, *("yes" if kind in trained else "no" for kind in KINDS)])
    return _written(lines)


def _written(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def updated(text: str) -> str:
    """The page with its tables made anew."""
    text = OF_KINDS.sub(lambda _: f"<!-- kinds -->\n\n{kinds()}\n\n<!-- end -->", text)
    return TABLE.sub(lambda m: f"<!-- table {m[1]} -->\n\n{table(m[1].split())}\n\n<!-- end -->", text)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
