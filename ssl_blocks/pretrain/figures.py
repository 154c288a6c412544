"""Pictures of a run: an objective at work on a few images, and how training went."""

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_blocks.data import Augmentation, ImageData, denormalize, to_float
from ssl_blocks.encoders import FeatureEncoder, RegionEncoder, TokenEncoder, attention_weights
from ssl_blocks.evaluation import Scores
from ssl_blocks.evaluation.pooling import encode_all
from ssl_blocks.grid import Grid
from ssl_blocks.modes import modes_kept
from ssl_blocks.objectives import Objective, PatchPuzzle, SegmentPrediction, ViewRegionDistillation, WeightedSum
from ssl_blocks.objectives.objective import seen_by
from ssl_blocks.parts.region_loss import match_regions
from ssl_blocks.parts.target import PictureTarget, PositionTarget
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.randomness import random_ranks, seeded_generator
from ssl_blocks.values import Views
from ssl_blocks.visualize import (
    draw_curves,
    draw_features,
    draw_matches,
    draw_puzzles,
    draw_reconstructions,
    draw_segments,
    draw_steps,
    reading_order_gif,
    save_figure,
)

NUM_EXAMPLES = 6
NUM_IN_STEPS = 3  # images shown step by step
NUM_SHOWN, NUM_LOCAL = 4, 3  # images whose views are shown; small crops of each


@torch.no_grad()
def write_figures(
    objective: Objective, data: ImageData, folder: Path, augment: Augmentation | None = None
) -> list[Path]:
    """Write what there is to see of an objective on a few test images; return the files.

    Another kind of objective brings its pictures with ``draw_examples.register``. It is on the CPU, and its mode is
    left as it was; ``augment`` makes views for one that takes them.
    """
    images = example_images(data)
    views = augment(images, generator=seeded_generator("cpu", 0)) if augment and objective.takes_views else images
    with modes_kept(objective, training=False):
        return draw_examples(objective, views, data, folder)


@torch.no_grad()
def write_features(objective: Objective, data: ImageData, folder: Path) -> list[Path]:
    """Write what the encoder that a run leaves behind makes of the places of a few test images; return the files.

    Its features as colours, and where its class token looks; of encoders without places there is nothing to see. The
    objective is on the CPU, and its mode is left as it was.
    """
    images = example_images(data)
    with modes_kept(objective.export_encoder().module, training=False):
        places = look_at_places(objective, images)
    if places is None:
        return []
    features, grid, attention = places
    figure = draw_features(pictures_of(images, data), features, grid, attention=attention)
    save_figure(figure, folder / "features.png")
    return [folder / "features.png"]


def look_at_places(objective: Objective, images: Tensor) -> tuple[Tensor, Grid, Tensor | None] | None:
    """What the encoder that a run leaves behind makes of the places of normalised images.

    Features ``[B, N, D]``, their grid, and how much the class token looks at each place ``[B, N]``, if it can be told.
    ``None``: the encoder has no places. Training mode is the caller's.
    """
    encoder = objective.export_encoder()
    places = find_places(encoder, images, objective.tokenizer)
    return None if places is None else (*places, _attention(encoder, images))


def find_places(encoder: FeatureEncoder, images: Tensor, tokenizer: Tokenizer | None) -> tuple[Tensor, Grid] | None:
    """Features ``[B, N, D]`` of the places of normalised images, and their grid; ``None``: it has no places."""
    if isinstance(encoder, RegionEncoder):
        found = encoder.regions(images)
        return found.map, found.grid
    if not isinstance(encoder, TokenEncoder):
        return None
    tokens = encode_all(encoder, images if tokenizer is None else tokenizer(images))
    return tokens.final[:, encoder.num_prefix :], encoder.grid


def _attention(encoder: FeatureEncoder, images: Tensor) -> Float[Tensor, "b n"] | None:
    """How much the first prefix token looks at each patch; ``None`` where there is none, or nobody can tell."""
    if not isinstance(encoder, TokenEncoder) or not encoder.num_prefix:
        return None
    try:
        return attention_weights(encoder, images)[:, :, 0, encoder.num_prefix :].mean(1)
    except (RuntimeError, ValueError):  # attention of its own, or patches that only a tokenizer cuts
        return None


def example_images(data: ImageData) -> Float[Tensor, "b c *s"]:
    """A few test images, or training images where there are none, normalised and on the CPU."""
    split = data.train if data.test is None else data.test
    chosen = torch.linspace(0, len(split) - 1, min(NUM_EXAMPLES, len(split))).long()
    return to_float(split.read(chosen), data.mean, data.std)


@singledispatch
def draw_examples(objective: Objective, images: Tensor | Views, data: ImageData, folder: Path) -> list[Path]:
    """Draw an objective at work on normalised images ``[B, C, H, W]``, or on views of them where it takes views.

    Kinds that nobody registered show their predictions in place, where their target has pictures.
    """
    target = getattr(objective, "target", None)
    if isinstance(images, Views) or objective.tokenizer is None or not isinstance(target, PictureTarget):
        return []
    draw = objective.draw(images, generator=seeded_generator("cpu", 0))
    shown, wanted, hidden = in_place(objective, images, draw, data)
    figure = draw_reconstructions(pictures_of(images, data), wanted, shown, ~hidden, objective.tokenizer.grid)
    save_figure(figure, folder / "reconstructions.png")
    return [folder / "reconstructions.png"]


@draw_examples.register
def _(objective: SegmentPrediction, images: Tensor, data: ImageData, folder: Path) -> list[Path]:
    grid, pictures = objective.tokenizer.grid, pictures_of(images, data)
    files = draw_examples.dispatch(Objective)(objective, images, data, folder)
    segments = objective.partitioner(images, grid, generator=seeded_generator("cpu", 0))  # the draw begins with these
    draw = objective.draw(images, generator=seeded_generator("cpu", 0))
    if int(draw.step.max()) < 2:  # two steps: given and predicted
        return files
    save_figure(draw_segments(pictures, segments, grid), folder / "segments.png")
    reading_order_gif(pictures[0], draw, grid, folder / "reading_order.gif")
    if files:
        rows, shown = tuple(range(min(NUM_IN_STEPS, len(images)))), in_place(objective, images, draw, data)[0]
        steps = draw_steps(pictures, shown, draw, grid, image_indices=rows, predict_first=objective.predict_first)
        save_figure(steps, folder / "steps.png")
        files.append(folder / "steps.png")
    return [*files, folder / "segments.png", folder / "reading_order.gif"]


@draw_examples.register
def _(objective: PatchPuzzle, images: Tensor, data: ImageData, folder: Path) -> list[Path]:
    if not isinstance(objective.target, PositionTarget):
        return []
    grid = objective.tokenizer.grid
    shuffled = random_ranks(len(images), grid.num_tokens, generator=seeded_generator("cpu", 0), device="cpu")
    guessed = objective.target.arrange(objective(images, objective.keep_all(images)).predictions)
    patches = objective.tokenizer(pictures_of(images, data))
    save_figure(draw_puzzles(patches, shuffled, guessed, grid), folder / "puzzles.png")
    return [folder / "puzzles.png"]


@draw_examples.register
def _(objective: ViewRegionDistillation, images: Views, data: ImageData, folder: Path) -> list[Path]:
    crops = [crop[:NUM_SHOWN] for crop in images.images]
    if len(crops) < 2:
        return []
    pictures = [pictures_of(crop, data) for crop in crops]
    student = objective.encoder.regions(crops[0])
    teacher = objective.export_encoder().regions(crops[1])
    figure = draw_matches(
        pictures[0],
        pictures[1],
        match_regions(student.map, teacher.map),
        (student.grid, teacher.grid),
        others=pictures[images.num_global :][:NUM_LOCAL],
    )
    save_figure(figure, folder / "regions.png")
    return [folder / "regions.png"]


@draw_examples.register
def _(objective: WeightedSum, images: Tensor | Views, data: ImageData, folder: Path) -> list[Path]:
    files: list[Path] = []
    for name, part in objective.parts.items():
        if not part.reads_shared:
            files += draw_examples(part, seen_by(part, images), data, folder / name)
    return files


def pictures_of(images: Tensor, data: ImageData) -> Float[Tensor, "b c h w"]:
    """Normalised images in 0..1."""
    return denormalize(images, data.mean, data.std).clamp(0, 1)


def in_place(
    objective: Objective, images: Tensor, draw: object, data: ImageData
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Bool[Tensor, "b n"]]:
    """Pictures of predictions with the targets around them, of the targets alone, and which positions are predicted."""
    target, out = objective.target, objective(images, draw)
    assert isinstance(target, PictureTarget)
    wanted = target(images)
    # of a position that several rows predict, as overlapping blocks do, the mean is shown
    times = wanted.new_zeros(wanted.shape[:2]).scatter_add(1, out.index, out.is_target.to(wanted.dtype))
    rows = torch.where(out.is_target[..., None], out.predictions.to(wanted.dtype), 0.0)
    total = torch.zeros_like(wanted).scatter_add(1, out.index[..., None].expand_as(rows), rows)
    guess = torch.where(times[..., None] > 0, total / times[..., None], wanted)
    hidden = times > 0
    shown, aimed_at = (pictures_of(target.to_pixels(values, images), data) for values in (guess, wanted))
    return shown, aimed_at, hidden


def write_curves(folder: Path, scores: Sequence[Scores]) -> Path:
    """Write ``figures/curves.png`` of the run in ``folder``, with the scores of untrained features for comparison."""
    references = {score.name: score.knn for score in scores if score.name != "pretrained encoder"}
    path = folder / "figures" / "curves.png"
    save_figure(draw_curves({folder.name: folder / "metrics.csv"}, references=references), path)
    return path
