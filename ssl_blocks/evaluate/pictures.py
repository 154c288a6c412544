"""Pictures of an evaluation: which images are alike, and what features make of the places of an image."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_blocks.data import to_float
from ssl_blocks.evaluation.labelled import Labelled
from ssl_blocks.evaluation.subject import Subject
from ssl_blocks.modes import modes_kept
from ssl_blocks.pretrain.figures import find_places
from ssl_blocks.visualize import draw_features, draw_neighbours, save_figure

if TYPE_CHECKING:
    import matplotlib.figure

NUM_SHOWN, NUM_NEAREST = 6, 6


def draw_pictures(subject: Subject, data: Labelled, results: Path, say: Callable[[str], None]) -> list[Path]:
    """Draw neighbours and features of some test images beside a file of results; a picture that fails is one line.

    Of a run they lie in its ``figures/``, else beside the file, with its name in front. None that is there is replaced:
    the next one is numbered.
    """
    of_run = subject.folder is not None and results == subject.folder / "results.json"
    stem = results.parent / "figures" / "evaluate" if of_run else results.with_suffix("")
    drawn = []
    for name, draw in (("neighbours", _neighbours), ("features", _features)):
        try:
            figure = draw(subject, data)
            if figure is not None:
                drawn.append(_free(stem.with_name(f"{stem.name}_{name}.png")))
                save_figure(figure, drawn[-1])
        except Exception as error:  # whatever it is, the scores are there
            say(f"warning: no picture of {name}: {type(error).__name__}: {' '.join(str(error).split())}")
    return drawn


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def _some(data: Labelled) -> Tensor:
    """Places of some test images, of as many classes as there are to choose from."""
    labels = data.test_labels
    firsts = [int((labels == label).nonzero()[0, 0]) for label in sorted(set(labels.tolist()))]
    if len(firsts) >= NUM_SHOWN:
        return torch.tensor(firsts)[torch.linspace(0, len(firsts) - 1, NUM_SHOWN).long()]
    return torch.linspace(0, len(labels) - 1, min(NUM_SHOWN, len(labels))).long()


def _neighbours(subject: Subject, data: Labelled) -> "matplotlib.figure.Figure":
    found, places = subject.features(data), _some(data)
    bank, asked = (F.normalize(x, dim=1) for x in (found.train, found.test[places]))
    nearest = (asked @ bank.T).topk(min(NUM_NEAREST, len(bank)), dim=1).indices
    pictures = torch.stack([_plain(data.train.read(row)) for row in nearest])
    labels = data.test_labels[places]
    names = [data.class_names[label] if data.class_names else str(label) for label in labels.tolist()]
    is_same = data.train_labels[nearest] == labels[:, None]
    return draw_neighbours(_plain(data.test.read(places)), pictures, is_same=is_same, names=names)


def _features(subject: Subject, data: Labelled) -> "matplotlib.figure.Figure | None":
    own, images = subject.extractor, data.test.read(_some(data))
    x = to_float(images, own.mean, own.std).to(own.device)
    own.encoder.module.to(own.device)
    with torch.no_grad(), modes_kept(own.encoder.module, training=False):
        places = find_places(own.encoder, x, own.tokenizer)
    return None if places is None else draw_features(_plain(images), places[0].float().cpu(), places[1])


def _plain(images: Tensor) -> Tensor:
    """Images in 0..1."""
    return to_float(images, (0.0,) * images.shape[1], (1.0,) * images.shape[1])
