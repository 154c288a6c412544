"""Classes or masks of images by a fine-tuned model."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from ssl_blocks.data.files import read_shape
from ssl_blocks.data.pairs import IGNORED
from ssl_blocks.data.resample import cover_of
from ssl_blocks.deploy.cli import check_output
from ssl_blocks.deploy.config import PredictConfig
from ssl_blocks.deploy.features import encode, open_images
from ssl_blocks.deploy.images import Batch, ImageStream
from ssl_blocks.deploy.tables import csv_writer
from ssl_blocks.engine.devices import choose_device
from ssl_blocks.evaluation.classifier import Classifier
from ssl_blocks.evaluation.extract import Extractor
from ssl_blocks.evaluation.saved import ENCODER, NOTES, Loaded, load_classifier, load_segmenter
from ssl_blocks.evaluation.segmentation import SegmentationModel
from ssl_blocks.evaluation.subject import Subject, find_subject
from ssl_blocks.files import at_home, atomically, read_json
from ssl_blocks.text import terminal

KINDS: dict[str, Callable[[str | Path], Loaded[Any]]] = {
    "Classifier": load_classifier,
    "SegmentationModel": load_segmenter,
}


@dataclass(frozen=True)
class Predicted:
    """What was written.

    Args:
        output: the table, or the folder of masks.
        num_images: rows, or masks.
        class_names: by class, as they stand in the output: names, or numbers where nobody named them.
        skipped: images that could not be read.
        remarks: what was found, in words.
    """

    output: Path
    num_images: int
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]
    remarks: tuple[str, ...]


class Logits:
    """A trained model as an encoder whose features are its logits, or of a segmentation model its masks.

    Args:
        model: trained.
        channels: of the images.
    """

    def __init__(self, model: Classifier | SegmentationModel, *, channels: int) -> None:
        self.module: nn.Module = model
        self.channels, self.dim = channels, model.num_classes

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Logits ``[B, K]``; or the class of every pixel in a row ``[B, H*W]``, NaN where logits are not finite."""
        logits: Tensor = self.module(images)
        if logits.ndim == 2:
            return logits
        classes = logits.argmax(1).float()
        return classes.masked_fill(~logits.isfinite().all(1), torch.nan).flatten(1)


def load_model(folder: str | Path) -> Loaded[Any]:
    """Load a classifier or a segmentation model, as its folder says.

    Raises:
        FileNotFoundError: if the folder holds neither.
        ValueError: if it is damaged.
    """
    folder = at_home(folder)
    if not (folder / NOTES).is_file():
        raise FileNotFoundError(
            f"model={str(folder)!r} must be a folder with a trained model ({NOTES}), as evaluate writes it with "
            "--finetune.save or --segment.save"
        )
    kind = str(read_json(folder / NOTES).get("kind"))
    if kind not in KINDS:
        raise ValueError(f"{folder / NOTES} must be of a {' or a '.join(KINDS)}, but is of {kind}")
    return KINDS[kind](folder)


def model_subject(folder: str | Path, loaded: Loaded[Any]) -> Subject:
    """A trained model as a subject, whose features are its logits, or its masks."""
    own = find_subject(str(at_home(folder) / ENCODER))
    logits = Logits(loaded.model, channels=len(loaded.mean))
    extractor = Extractor(logits, loaded.mean, loaded.std)
    return replace(own, extractor=extractor, value_range=loaded.value_range, knows_statistics=True, fresh=None)


def predict(model: str | Path, images: Any, output: str | Path, *, progress: bool = False, **options: Any) -> Predicted:
    """Write what a fine-tuned model says of images: a table of classes, or a folder of masks.

    Args:
        model: a folder that `finetune_encoder`, `evaluate_segmentation` or the command ``evaluate`` wrote.
        images: a folder, all images of which are read at any depth, a file, or what `ssl_blocks.data.load` takes.
        output: for a classifier a ``.csv`` with ``file``, ``class`` and ``probability`` of each image, and ``class_2``,
            ``probability_2`` and so on where ``top_k`` asks for more. For a segmentation model a folder of PNG masks,
            whose pixels are classes: as large as the image, 255 where the model did not look, for it sees the centre.
            ``masks.csv``, written last, says which mask is of which file.
        progress: whether to show a bar.
        **options: fields of `PredictConfig`: ``top_k``, ``batch_size``, ``device``, ``precision``, ``corrupt``,
            ``value_range``, ``root`` and ``overwrite``.

    Raises:
        FileExistsError: if the output is there (a folder: and not empty), and ``overwrite`` is ``False``.
        FileNotFoundError: if model or images are not there.
        ValueError: if an option is wrong, or an image cannot be read or does not fit.
    """
    config = PredictConfig(output=Path(output), **options)
    loaded = load_model(model)
    is_classifier = isinstance(loaded.model, Classifier)
    path = _check_place(config.output, is_classifier, overwrite=config.overwrite)
    num_classes = loaded.model.num_classes
    names = loaded.class_names or tuple(map(str, range(num_classes)))
    if config.top_k > num_classes:
        raise ValueError(f"top_k={config.top_k} must be at most the {num_classes} classes of the model")
    device, dtype = choose_device(config.device, config.precision)
    subject = model_subject(model, loaded)
    extractor = replace(subject.extractor, device=device, dtype=dtype, batch_size=config.batch_size)
    stream, remarks = open_images(subject, images, config)
    if is_classifier:
        count = _write_classes(extractor, stream, path, names, config.top_k, progress=progress)
    else:
        count = _write_masks(extractor, stream, path, names, progress=progress)
    return Predicted(path, count, names, tuple(stream.skipped), remarks)


def _write_classes(
    extractor: Extractor, stream: ImageStream, path: Path, names: Sequence[str], top_k: int, *, progress: bool
) -> int:
    count = 0
    with csv_writer(path) as write:
        for part in encode(extractor, stream, progress=progress):
            shares, classes = part.features.softmax(1).topk(top_k)
            columns: dict[str, Any] = {"file": [row.file for row in part.rows]}
            for place in range(top_k):
                suffix = f"_{place + 1}" if place else ""
                columns[f"class{suffix}"] = [names[label] for label in classes[:, place].tolist()]
                columns[f"probability{suffix}"] = [f"{share:.6g}" for share in shares[:, place].tolist()]
            write(columns)
            count += len(part.rows)
    return count


def _check_place(folder: Path, is_file: bool, *, overwrite: bool) -> Path:
    """Refuse a table, or a folder for masks, that is there."""
    if is_file:
        return check_output(folder, overwrite=overwrite, suffixes=(".csv",))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        what = "a file" if folder.is_file() else "not empty"
        raise FileExistsError(f"output={str(folder)!r} must be a folder for masks, new or empty, but is {what}")
    return folder


def _write_masks(
    extractor: Extractor, stream: ImageStream, folder: Path, names: Sequence[str], *, progress: bool
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    files, masks = [], []
    steps = -(-len(stream) // stream.batch_size)
    for batch in track(stream, "segmenting", total=steps, disable=not progress, transient=True):
        found = extractor(batch.images).to(torch.uint8).view(-1, *batch.images.shape[2:]).numpy()
        for file, mask in zip((row.file for row in batch.rows), _on_whole_images(found, batch), strict=True):
            name = _free_name(file, taken)
            with atomically(folder / name) as temporary:
                _picture(mask).save(temporary, format="PNG")
            files.append(file)
            masks.append(name)
    with csv_writer(folder / "classes.csv") as write:
        write({"class": range(len(names)), "name": names})
    with csv_writer(folder / "masks.csv") as write:
        write({"file": files, "mask": masks})
    return len(masks)


def _on_whole_images(masks: NDArray[np.uint8], batch: Batch) -> Iterator[NDArray[np.uint8]]:
    """Masks of centres on images as large as they came, ``IGNORED`` around."""
    for mask, raw in zip(masks, batch.raw, strict=True):
        _, height, width = read_shape(raw, channels=batch.images.shape[1])
        cover = cover_of((height, width), (mask.shape[0], mask.shape[1]))
        lines = [
            _places(length, covered, seen)
            for length, covered, seen in zip((height, width), cover, mask.shape, strict=True)
        ]
        whole = np.pad(mask, ((0, 1), (0, 1)), constant_values=IGNORED)  # the last line: what was not seen
        yield whole[lines[0]][:, lines[1]]


def _places(length: int, covered: int, seen: int) -> NDArray[np.int64]:
    """For each of ``length`` pixels of an image that was resized to ``covered``: which of the middle ``seen`` it is."""
    # of the pixel's centre; what lies outside is line `seen`
    place = ((np.arange(length) + 0.5) * covered / length).astype(np.int64) - round((covered - seen) / 2)
    return np.where((place >= 0) & (place < seen), place, seen)


def _free_name(file: str, taken: set[str]) -> str:
    """A name for a mask that no other has: of the image, else with its suffix, else with a number."""
    path = Path(file)
    stem = path.stem or "mask"
    numbered = (f"{stem}_{number}" for number in itertools.count(2))
    stems = itertools.chain((stem, f"{path.parent.name}_{stem}", path.name), numbered)
    name = next(f"{one}.png" for one in stems if f"{one}.png" not in taken)
    taken.add(name)
    return name.replace(os.sep, "_")


def _picture(mask: NDArray[np.uint8]) -> Image.Image:
    """A PNG whose values are classes, shown in Pascal VOC's colours."""
    picture = Image.frombytes("P", (mask.shape[1], mask.shape[0]), np.ascontiguousarray(mask).tobytes())
    picture.putpalette(_colors().reshape(-1).tolist())
    return picture


def _colors() -> NDArray[np.uint8]:
    """Pascal VOC's colour of every class: bits of its number, dealt out to red, green and blue, the highest first."""
    classes, colors = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((classes >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def run(model: str, images: str, config: PredictConfig) -> str:
    """The command: what was written, in words."""
    done = predict(model, images, progress=terminal(stderr=True).is_terminal, **dict(config))
    lines = [f"note: {remark}" for remark in done.remarks]
    if done.skipped:
        lines.append(f"{len(done.skipped)} unreadable images were skipped, {done.skipped[0]} first")
    lines.append(f"wrote {done.output}: {done.num_images:,} images, {len(done.class_names)} classes")
    return "\n".join(lines)
