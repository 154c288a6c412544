"""What a run would be, told without data, weights or anything written."""

import string
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
import yaml

from ssl_blocks.data import Augmentation, ImageData, ImageShape, find_shape
from ssl_blocks.data.imagefolder import list_folder
from ssl_blocks.engine.parallel import count_processes
from ssl_blocks.engine.settings import section
from ssl_blocks.files import at_home
from ssl_blocks.grid import Grid
from ssl_blocks.modes import without_weights
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.pretrain.estimate import (
    PRECISIONS,
    activation_bytes,
    count_flops,
    count_parameters,
    example_images,
    state_bytes,
)
from ssl_blocks.pretrain.recipe import Assemble, C, build, with_data_in_code
from ssl_blocks.pretrain.resume import is_free
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.values import Serialization

NUM_IMAGES = {  # in the train splits of data sets that are not counted cheaply
    "digits": 1_297,
    "crowds": 6_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 105_000,
    "fashion-mnist": 60_000,
    "imagenet": 1_281_167,
}
KERNELS = {"fp32": "fp32", "bf16": "bf16 on a GPU (fused attention)", "bf16 on CPU": "bf16 on a CPU (plain attention)"}


def describe(config: C, assemble: Assemble[C], *, data: Any = None) -> str:
    """Describe a run: configuration, parameters, FLOPs, memory, schedule and the segments of one image.

    Data is only looked for, and noise takes its place, unless the configuration brings its own (`RunConfig.load_data`).
    The objective is built on the meta device, so its size is no matter; and with weights where it looks at any, or at
    images, while it is put together or when it draws.

    Args:
        config: the recipe's configuration.
        assemble: builds the objective for the data.
        data: in code, as of `Run.prepare`; it is loaded.

    Raises:
        ValueError: if parts do not fit, or the shape of the images is not known.
        TypeError: if the encoder cannot be kept causal.
    """
    if data is not None:
        config = with_data_in_code(config)
    count_processes(config.trainer, config.optimizer)  # batches that cannot be dealt out are refused at once
    images, remark = _data(config) if data is None else (config.load_given(data), "")
    schedule = _schedule(config, _num_images(config) if data is None else len(images.train))
    augmentation = config.augmentation(images.shape, images.mean, images.std)
    try:
        with without_weights():
            objective = assemble(config, images)
        found = _looked_at(config, objective, images.shape, augmentation)
    except Exception:  # what goes wrong without weights may be right with them, or says what is wrong
        found = _looked_at(config, build(config, assemble, images), images.shape, augmentation)
    *costs, segments = found
    shown = f"images: {'x'.join(map(str, images.shape))}{remark}"
    end = "dry run: nothing was downloaded, trained or written"
    return "\n\n".join(filter(None, [_configuration(config), shown, *costs, schedule, segments, end])) + "\n"


def _looked_at(config: RunConfig, objective: Objective, shape: ImageShape, augmentation: Augmentation) -> list[str]:
    """What it costs, and last its segments, which are looked at first."""
    segments = segments_text(objective, shape, augmentation, seed=config.seed)
    costs = _flops(objective, shape, augmentation), _memory(config, objective, shape, augmentation)
    return [_parameters(objective), *costs, segments]


def _data(config: RunConfig) -> tuple[ImageData, str]:
    """The images, or noise of their shape, and what was assumed where they are not there."""
    if type(config).load_data is not RunConfig.load_data:
        return config.load_data(), ""
    data = config.data
    with section("data"):
        try:
            shape = find_shape(data.name, image_size=data.image_size, channels=data.channels, root=data.root)
            return ImageData.stand_in(shape), ""
        except FileNotFoundError as error:
            missing = " ".join(str(error).split())
    if data.image_size is None:
        raise ValueError(
            f"data.image_size=None needs the data, but {missing}: give --data.image_size for a dry run without it"
        )
    size = data.image_size
    shape = ImageShape(data.channels or 3, *((size, size) if isinstance(size, int) else size))
    guess = "data.image_size as configured" + ("" if data.channels else " and 3 channels")
    note = f"NOTE: the data was not found; assumed: {guess} ({missing})"
    remark = textwrap.fill(note, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    return ImageData.stand_in(shape), f"\n{remark}"


def _configuration(config: RunConfig) -> str:
    place = "is free" if is_free(config.folder) else "holds something already: only --resume would go on there"
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=96)
    return f"configuration ({config.folder} {place}):\n{textwrap.indent(text.rstrip(), '  ')}"


def _parameters(objective: Objective) -> str:
    counts = count_parameters(objective)
    rows = [("parameters", "total", "trainable")]
    rows += [(name, f"{c.total:,}", f"{c.trainable:,}") for name, c in counts.items()]
    total, trained = (sum(getattr(c, which) for c in counts.values()) for which in ("total", "trainable"))
    return _columns([*rows, ("all", f"{total:,}", f"{trained:,}")])


def _flops(objective: Objective, shape: ImageShape, augmentation: Augmentation) -> str:
    flops = count_flops(objective, shape, augmentation)
    rows = {**flops._asdict(), "training step": sum(flops)}
    table = _columns([("FLOPs per image", ""), *((name, f"{number / 1e9:.4g} G") for name, number in rows.items())])
    return f"{table}\n  matrix products alone, 2 for each multiply-add; attention over all pairs, masked or not"


def _memory(config: RunConfig, objective: Objective, shape: ImageShape, augmentation: Augmentation) -> str:
    processes, settings = count_processes(config.trainer, config.optimizer).world_size, config.optimizer
    images = settings.batch_size // (processes * settings.accumulate)
    shards = processes if config.trainer.strategy == "fsdp" else 1
    fixed = dict(zip(("parameters", "gradients", "AdamW"), state_bytes(objective), strict=True))
    static = [("memory per process", ""), *((name, _bytes(number / shards)) for name, number in fixed.items())]
    rows = [("activations", "an image", f"{images} images", "and all above")]
    for precision in PRECISIONS:
        kept = activation_bytes(objective, shape, precision, augmentation)
        total = sum(fixed.values()) / shards + kept.of(images)
        rows.append((KERNELS[precision], _bytes(kept.per_image), _bytes(kept.of(images)), _bytes(total)))
    return (
        f"{_columns(static)}\n{_columns(rows)}\n"
        f"  {images} images at a time: batch {settings.batch_size}, {processes} process{'es' * (processes > 1)}, "
        f"{settings.accumulate} part{'s' * (settings.accumulate > 1)} (optimizer.accumulate).\n"
        "  An estimate of what the backward pass needs; it leaves out the allocator's slack, workspaces of kernels,\n"
        "  gradients of activations, buffers for communication, and the images themselves."
    )


def _schedule(config: RunConfig, number: int | None) -> str:
    settings, epochs = config.optimizer, config.trainer.epochs
    rows = [("schedule", ""), ("peak learning rate", f"{settings.lr:.4g}")]
    remark = settings.warmup_remark(epochs)
    note = "" if remark is None else f"\n  note: {remark}"
    if number is None:
        return f"{_columns(rows)}\n  steps are not known before the data is{note}"
    if number < settings.batch_size:
        raise ValueError(f"optimizer.batch_size={settings.batch_size} must not exceed the {number} training images")
    steps = number // settings.batch_size
    warmup = settings.warmup_steps(steps_per_epoch=steps, epochs=epochs)
    counted = [("training images", number), ("steps per epoch", steps), ("steps", steps * epochs), ("warm-up", warmup)]
    return _columns([*rows, *((name, f"{value:,}") for name, value in counted)]) + note


def _num_images(config: RunConfig) -> int | None:
    name, most = config.data.name, config.data.max_train
    found = NUM_IMAGES.get(name)
    if name.startswith("imagefolder:"):
        try:
            held = list_folder(at_home(name.partition(":")[2]))
        except (OSError, ValueError):
            return None
        if held.test is None and held.train.labels is not None:
            return None  # some of them will be held out
        found = len(held.train.items)
    return found if found is None or most is None else min(found, most)


def segments_text(
    objective: Objective, shape: ImageShape, augmentation: Augmentation | None = None, *, seed: int
) -> str:
    """Draw the segments of one image as letters, and beside them the step at which each token is read.

    Objectives whose draw is no serialization have no such picture: the text is empty.
    """
    generator = seeded_generator("cpu", seed)
    images = example_images(objective, shape, augmentation, batch=1)
    with torch.no_grad():
        draw = objective.draw(images, generator=generator)
    if not isinstance(draw, Serialization) or objective.tokenizer is None:
        return ""
    grid = objective.tokenizer.grid
    steps = draw.put(draw.step)[0].tolist()
    number, names = len(set(steps)), string.ascii_uppercase + string.ascii_lowercase
    wide = names if number <= len(names) else [a + b for a in names for b in names]
    letters = dict(zip(dict.fromkeys(steps), wide, strict=False))  # in raster order
    width = len(str(number))
    left = _lines([letters[step] for step in steps], grid)
    right = _lines([str(step + 1).rjust(width) for step in steps], grid)
    gap = max(4, 12 - len(left[0]))
    title = "segments".ljust(len(left[0]) + gap) + "read as number"
    lines = [f"{a}{' ' * gap}{b}" for a, b in zip(left, right, strict=True)]
    order = " ".join(letters[step] for step in range(number))
    caption = f"{number} segments of one image, drawn with seed {seed}, on a {grid} grid; the order of reading:"
    picture = "\n".join([*textwrap.wrap(order, 76), "", title, *lines])
    return f"{caption}\n{textwrap.indent(picture, '  ')}"


def _lines(cells: list[str], grid: Grid) -> list[str]:
    width = grid.sizes[-1]
    return [" ".join(cells[start : start + width]) for start in range(0, grid.num_tokens, width)]


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    """A title row, then rows indented below it, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] += 2
    lines = []
    for number, row in enumerate(rows):
        name = row[0] if number == 0 else f"  {row[0]}"
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _bytes(number: int | float) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.2f} MiB"
