"""Draw the pictures of the documentation into docs/images: run as ``python docs/make_figures.py``.

Those of a run need `randsac_digits` to be trained anew, minutes on two CPU cores; ``--without-run`` leaves them alone.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.visualize import draw_masks, draw_segments, reading_order_gif, save_figure

FOLDER = Path(__file__).parent / "images"
GRID = sb.Grid(8, 8)


def scene(size: int = 64) -> Tensor:
    """A landscape ``[3, size, size]``: sky, sun, hills and a lake, in few colours."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    sky = torch.stack([0.45 + 0.4 * y, 0.65 + 0.2 * y, torch.full_like(y, 0.95)])
    picture = (sky * 12).round() / 12

    def paint(where: Tensor, red: float, green: float, blue: float) -> None:
        picture[:, where] = torch.tensor([red, green, blue])[:, None]

    paint((x - 0.72) ** 2 + (y - 0.24) ** 2 < 0.012, 1.0, 0.85, 0.25)
    paint(y > 0.42 + 0.13 * torch.sin(7 * x + 0.6), 0.42, 0.53, 0.62)
    paint(y > 0.60 - 0.16 * torch.sin(4.5 * x + 0.2), 0.33, 0.55, 0.27)
    paint(y > 0.76 + 0.05 * torch.sin(9 * x), 0.17, 0.39, 0.60)
    paint(((x - 0.30).abs() < 0.015) & (y > 0.5) & (y < 0.85), 0.35, 0.24, 0.16)
    paint((x - 0.30) ** 2 + 0.6 * (y - 0.42) ** 2 < 0.010, 0.11, 0.33, 0.18)
    return picture


def generator(seed: int) -> torch.Generator:
    """A source of randomness that makes the same pictures every time."""
    return torch.Generator().manual_seed(seed)


def draw_partitioners(name: str, partitioners: dict[str, sb.parts.SegmentPartitioner], seed: int) -> None:
    """One column per partitioner, all of the same picture."""
    drawn = [
        partitioner(torch.zeros(1, 3, 32, 32), GRID, generator=generator(seed)) for partitioner in partitioners.values()
    ]
    levels = tuple(torch.cat(ids) for ids in zip(*(segments.levels for segments in drawn), strict=True))
    segments = sb.Segments(levels=levels, counts=tuple(int(ids.max()) + 1 for ids in levels))
    figure = draw_segments(scene().expand(len(drawn), -1, -1, -1), segments, GRID)
    for panel, title in zip(figure.axes, partitioners, strict=False):
        panel.set_title(title, fontsize=11)
    save_figure(figure, FOLDER / name)


def draw_order(name: str, partitioner: sb.parts.SegmentPartitioner, seed: int) -> None:
    """Reading order as a GIF."""
    segments = partitioner(torch.zeros(1, 3, 32, 32), GRID, generator=generator(seed))
    draw = sb.RandomSerializer()(segments, generator=generator(seed))
    reading_order_gif(scene(), draw, GRID, FOLDER / name, milliseconds=400)


def draw_mask(
    name: str, partitioner: sb.parts.SegmentPartitioner, serializer: sb.parts.Serializer, num_prefix: int = 0
) -> None:
    """The three masks of one image."""
    draw = serializer(partitioner(torch.zeros(1, 3, 32, 32), GRID, generator=generator(3)), generator=generator(3))
    masks = sb.SegmentCausalMask()(draw, *draw.windows(), num_prefix=num_prefix)
    save_figure(draw_masks(masks, draw), FOLDER / name)


def draw_run() -> None:
    """Curves, steps and reconstructions of a run, in single precision on CPU, so that they come out the same."""
    recipe = Path(__file__).parents[1] / "examples" / "randsac.py"
    with tempfile.TemporaryDirectory() as folder:
        options = ("--trainer.knn_every=5", "--trainer.precision=fp32", "--trainer.device=cpu")
        command = [sys.executable, str(recipe), "--preset=randsac_digits", f"--output_dir={folder}", *options]
        subprocess.run(command, check=True)
        for name in ("curves", "steps", "reconstructions"):
            shutil.copy(Path(folder) / "randsac_digits" / "figures" / f"{name}.png", FOLDER / f"run_{name}.png")


def main() -> None:
    """Draw everything."""
    if "--without-run" not in sys.argv:
        draw_run()
    squares, blobs = sb.SquarePartitioner(sides=(2, 4)), sb.BlobPartitioner(counts=(7, 3))
    draw_partitioners(
        "segments.png",
        {
            "tokens": sb.TokenPartitioner(),
            "squares": sb.SquarePartitioner(sides=(2,)),
            "blobs": sb.BlobPartitioner(counts=(7,)),
            "subset": sb.SubsetPartitioner(hidden=0.75),
            "blobs, shuffled": sb.ShuffledPartitioner(base=sb.BlobPartitioner(counts=(7,))),
        },
        seed=5,
    )
    draw_partitioners(
        "hierarchies.png",
        {"squares, 16→4": squares, "blobs, 7→3": blobs, "squares, shuffled": sb.ShuffledPartitioner(base=squares)},
        seed=2,
    )
    draw_order("order_squares.gif", squares, seed=1)
    draw_order("order_blobs.gif", blobs, seed=4)
    draw_mask("masks_squares.png", sb.SquarePartitioner(sides=(4,)), sb.RandomSerializer(), num_prefix=1)
    draw_mask("masks_blobs.png", sb.BlobPartitioner(counts=(5,)), sb.RandomSerializer())
    draw_mask("masks_subset.png", sb.SubsetPartitioner(hidden=0.75), sb.OrderedSerializer())


if __name__ == "__main__":
    main()
