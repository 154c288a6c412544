"""Every field of every recipe has an effect: it is read, and what it says arrives in a part, or it is refused."""

import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from PIL import Image

from ssl_blocks.cli import load_config
from ssl_blocks.cli.arguments import kind_of, sub_models
from ssl_blocks.data import ImageData, ImageShape
from ssl_blocks.engine import StrictModel
from ssl_blocks.modes import without_weights
from ssl_blocks.pretrain import RunConfig
from ssl_blocks.recipes import RECIPES
from tests.pretrain.small import prepare

pytestmark = pytest.mark.process  # takes long

DATA = ImageData.stand_in(ImageShape(3, 32, 32))
OF_THE_RUN = ("name", "output_dir", "seed", "note", "start", "optimizer.", "trainer.", "data.")  # whatever the recipe
OF_VIEWS = ("data.flip", "data.crop_scale")
SMALL = {  # so that building takes no time
    **dict.fromkeys(("randsac", "mae"), ("--encoder.depth=2", "--encoder.heads=2")),
    "combined": ("--encoder.depth=2", "--encoder.heads=2", "--segments.kind=square"),
    "saim": ("--encoder.depth=2", "--encoder.heads=2", "--query_depth=2"),
    "apl": ("--encoder.heads=12",),  # which fits both kinds
    "esvit": ("--head.out_dim=16", "--head.hidden=16", "--head.bottleneck=8"),
    "esvit map": ("--encoder.stage_depths=1,1",),
    **dict.fromkeys(("esvit vit", "esvit torchvision", "esvit transformers"), ("--encoder.depth=2",)),
}
CHOICES = {"randsac": ["--two_stream=true"], "mae": ["--mask=block", "--mask=grid"]}  # beside kinds of parts
OTHERS = {  # values that fit where half or twice the default does not, or where there is none
    "encoder.name": "vit_small_patch16_224",
    "encoder.positions": "learned",
    "encoder.patch_size": "8",
    "torchvision encoder.name": "vit_b_32",
    "transformers encoder.name": "dinov2",
    "encoder.class_token": "true",
    "apl encoder.name": "vit_small_patch16_224",
    "esvit encoder.name": "swin_small_patch4_window7_224",
    "esvit encoder.drop_path": "0.25",
    "esvit encoder.patch_size": "8",
    "esvit encoder.depth": "6",
    "esvit encoder.heads": "6",
    "encoder.stage_depths": "1,2",
    "encoder.width": "192",
    "randsac decoder.width": "48",
    "combined decoder.width": "48",
    "saim query_depth": "1",
    "saim blur": "5,0.5",
    "apl grid": "8",
    "mask_ratio": "0.5",
    "head.freeze_epochs": "3",
    "teacher.warmup_epochs": "2",
    "esvit region_weight": "0.25",
    "esvit koleo_weight": "0.5",
}
NOT_HERE = {"encoder.pretrained", "saim encoder.class_token"}  # weights: test_pretrained_recipe; one value: test_saim


def leaves(model: StrictModel, prefix: str = "") -> Iterator[tuple[int, str, str]]:
    """Model, name and path of every field, sections left out."""
    for name in type(model).model_fields:
        value = object.__getattribute__(model, name)
        if isinstance(value, StrictModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield id(model), name, prefix + name


class Reads:
    """Notes which fields of which configuration are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: set[tuple[int, str]] = set()
        own = StrictModel.__getattribute__

        def spy(model: StrictModel, name: str) -> Any:
            self.seen.add((id(model), name))
            return own(model, name)

        monkeypatch.setattr(StrictModel, "__getattribute__", spy, raising=False)

    def missing(self, config: RunConfig) -> list[str]:
        return [path for model, name, path in leaves(config) if (model, name) not in self.seen]


def configure(recipe: str, *options: str) -> RunConfig:
    preset = next(name for name in RECIPES[recipe].preset_files() if name.endswith("cifar_small"))
    kind = next((option.partition(".kind=")[2] for option in options if option.startswith("--encoder.kind=")), "map")
    options = (f"--preset={preset}", *SMALL[recipe], *SMALL.get(f"{recipe} {kind}", ()), *options)
    given = {option.partition("=")[0]: option for option in options if option}
    return load_config(RECIPES[recipe], list(given.values()))


def variants() -> list[tuple[str, str]]:
    """Every recipe as its preset has it, with every kind of parts that another has not had, and with other choices."""
    found, seen = [(name, "") for name in RECIPES], set()
    for name, recipe in RECIPES.items():
        for field, info in recipe.config.model_fields.items():
            models = tuple(sub_models(info))
            if len(models) > 1 and models not in seen:
                found += [(name, f"--{field}.kind={kind_of(model)}") for model in models]
            seen.add(models)
        found += [(name, option) for option in CHOICES.get(name, [])]
    return found


def build(recipe: str, config: RunConfig) -> Iterator[Any]:
    """What varies the images, and the objective."""
    yield config.augmentation(DATA.shape, (0.5,) * 3, (0.2,) * 3)
    with without_weights():
        yield RECIPES[recipe].assemble(config, DATA)


def fields(config: RunConfig, *, idle: bool) -> set[str]:
    """Paths of a recipe's own fields, with an effect or without; kinds left out, which choose the model itself."""
    return {
        path
        for _, _, path in leaves(config)
        if (path in OF_VIEWS or not path.startswith(OF_THE_RUN)) and not path.endswith(".kind")
        if idle == any(f"{path}.".startswith(f"{name}.") for name in config.idle())
    }


@pytest.mark.parametrize(("recipe", "choice"), variants())
def test_what_nothing_reads_is_refused_or_not_there(recipe: str, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(recipe, choice)
    with monkeypatch.context() as patch:
        reads = Reads(patch)
        assert len(list(build(recipe, config))) == 2
    idle = fields(config, idle=True)
    assert set(reads.missing(config)) & (idle | fields(config, idle=False)) == idle
    for path in idle:
        with pytest.raises(ValueError, match=rf"^--{path} \S+ has no effect with \w+=\w+: leave it out"):
            configure(recipe, choice, f"--{path}={getattr_path(config, path)}")


def test_every_other_field_is_read_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare(tmp_path, "--trainer.epochs=2")  # what preparing reads is read once more below
    with monkeypatch.context() as patch:
        reads = Reads(patch)
        type(run).prepare(run.config, run.assemble).fit()
    assert reads.missing(run.config) == []


def described(value: Any, seen: dict[int, int]) -> Any:
    """All that a part was made of: numbers, words, shapes, and the parts inside it."""
    if value is None or isinstance(value, int | float | str | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape)), value.requires_grad
    if isinstance(value, partial):
        return described([value.func, value.keywords], seen)
    if isinstance(value, dict):
        return [(str(k), described(v, seen)) for k, v in value.items() if "_hooks" not in str(k)]  # counted up
    if isinstance(value, list | tuple | set):
        return [described(inner, seen) for inner in value]
    if id(value) in seen:
        return f"again {seen[id(value)]}"
    seen[id(value)] = len(seen)
    return type(value).__name__, getattr(value, "__qualname__", ""), described(getattr(value, "__dict__", {}), seen)


def another_value(recipe: str, path: str, config: RunConfig) -> str:
    """A value that fits as well."""
    part, _, name = path.rpartition(".")
    annotation = type(getattr_path(config, part)).model_fields[name].annotation
    value = getattr_path(config, path)
    if isinstance(value, bool):
        return str(not value).lower()
    for known in (f"{config.encoder.kind} {path}", f"{recipe} {path}", path):
        if known in OTHERS:
            return OTHERS[known]
    if get_origin(annotation) is Literal:
        return str(next(choice for choice in get_args(annotation) if choice != value))
    if isinstance(value, tuple):
        return ",".join(str(type(part)(part / 2) or 1) for part in value)
    assert value is not None, f"say in OTHERS what {recipe}'s --{path} could be"
    return str(2 * value if isinstance(value, int) else value / 2 or 0.25)


@cache
def to_try() -> dict[tuple[str, str], list[str]]:
    """Fields of every variant that are tried: of a section that another one has had, one tells that it arrives."""
    found, seen = {}, set()
    for recipe, choice in variants():
        config = configure(recipe, choice)
        paths = fields(config, idle=False)
        if choice:  # the others have been looked at without it
            paths -= fields(configure(recipe), idle=False)
        paths = sorted(path for path in paths if not {path, f"{recipe} {path}"} & NOT_HERE)
        kinds = {path: type(getattr_path(config, path.rpartition(".")[0])) for path in paths if path not in OF_VIEWS}
        firsts = {kind: path for path, kind in reversed(kinds.items())}.values()
        fresh = {path for path, kind in kinds.items() if (kind, path) not in seen}
        found[recipe, choice] = [path for path in paths if path in {*OF_VIEWS, *firsts, *fresh}]
        seen |= {(kind, path) for path, kind in kinds.items()}
    return found


@pytest.mark.parametrize(("recipe", "choice"), variants())
def test_what_every_field_says_arrives_in_a_part(recipe: str, choice: str) -> None:
    config = configure(recipe, choice)
    before = [described(part, {}) for part in build(recipe, config)]
    if not choice:
        assert [described(part, {}) for part in build(recipe, config)] == before
    for path in to_try()[recipe, choice]:
        changed = configure(recipe, choice, f"--{path}={another_value(recipe, path, config)}")
        after = (described(part, {}) for part in build(recipe, changed))
        assert any(old != new for old, new in zip(before, after, strict=True)), f"--{path} changes nothing"


def getattr_path(config: RunConfig, path: str) -> Any:
    value: Any = config
    for name in filter(None, path.split(".")):
        value = getattr(value, name)
    return value


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    for label in ("a", "b"):
        for i in range(10):
            file = tmp_path / "images" / "train" / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * i, 0, 255)).save(file)
    shutil.copytree(tmp_path / "images" / "train", tmp_path / "images" / "test")
    (tmp_path / "images" / "train" / "a" / "3.png").write_bytes(b"no picture")
    return tmp_path / "images"


def test_what_to_do_about_a_damaged_image_is_handed_on(damaged: Path, tmp_path: Path) -> None:
    options = (f"--data.name=imagefolder:{damaged}", "--optimizer.batch_size=4")
    with pytest.raises(ValueError, match=r"3\.png must be a readable image"):
        prepare(tmp_path, *options)
    run = prepare(tmp_path, *options, "--data.corrupt=skip")
    assert [file.name for file in run.data.skipped] == ["3.png"]
