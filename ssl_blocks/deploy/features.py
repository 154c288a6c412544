"""Features of images by a trained encoder, written as they come."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from ssl_blocks.data import find_images
from ssl_blocks.deploy.cli import check_output
from ssl_blocks.deploy.config import EmbedConfig, ReadingConfig
from ssl_blocks.deploy.images import ImageStream, Row, values_of
from ssl_blocks.deploy.tables import feature_writer, files_of
from ssl_blocks.engine.devices import choose_device
from ssl_blocks.evaluation.extract import Extractor, FeatureError
from ssl_blocks.evaluation.pooling import PooledLayers
from ssl_blocks.evaluation.subject import Subject, find_subject
from ssl_blocks.text import terminal

SUFFIXES = (".npy", ".parquet")


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Args:
        files: the features first.
        num_images: rows.
        dim: width of the features.
        skipped: images that could not be read.
        remarks: what was found, in words.
    """

    files: tuple[Path, ...]
    num_images: int
    dim: int
    skipped: tuple[str, ...]
    remarks: tuple[str, ...]


class Encoded(NamedTuple):
    """Features of some images ``[B, D]``, and where each comes from."""

    features: Float[Tensor, "b d"]
    rows: tuple[Row, ...]


def embed(encoder: str | Path, images: Any, output: str | Path, *, progress: bool = False, **options: Any) -> Embedded:
    """Write features of images into a file; memory is that of two batches.

    Args:
        encoder: folder of a run or of an exported encoder, name of a timm model, or ``MODULE:FUNCTION``.
        images: a folder, all images of which are read at any depth, a file, or what `ssl_blocks.data.load` takes.
        output: ``.npy``, float32 ``[N, D]``, with ``row``, ``file``, ``split`` and ``label`` of each in a ``.csv``
            beside it; or ``.parquet`` with these columns and ``features``. Written whole or not at all.
        progress: whether to show a bar.
        **options: fields of `EmbedConfig`: ``pooling``, ``layers``, ``image_size``, ``batch_size``, ``device``,
            ``precision``, ``corrupt``, ``value_range``, ``root``, ``overwrite`` and ``pretrained``.

    Raises:
        FileExistsError: if the output is there, and ``overwrite`` is ``False``.
        FileNotFoundError: if encoder or images are not there.
        ValueError: if an option is wrong, an image cannot be read or does not fit, or features are not finite.
        ImportError: if pyarrow is needed and missing.

    Examples:
        >>> import tempfile, numpy as np
        >>> from ssl_blocks.encoders import export_encoder, timm_vit
        >>> folder, half = Path(tempfile.mkdtemp()), (0.5,)
        >>> vit = timm_vit(image_size=8, patch_size=4, channels=1, depth=1, embed_dim=8, num_heads=2)
        >>> _ = export_encoder(vit, folder / "encoder", tokenizer=None, mean=half, std=half)
        >>> embed(folder / "encoder", "digits", folder / "features.npy").num_images
        1797
        >>> np.load(folder / "features.npy").shape
        (1797, 8)
    """
    config = EmbedConfig(output=Path(output), **options)
    path = check_output(config.output, overwrite=config.overwrite, suffixes=SUFFIXES)
    files = tuple(files_of(path))
    for file in files:
        check_output(file, overwrite=config.overwrite)
    subject = _subject(encoder, config)
    stream, remarks = open_images(subject, images, config)
    notes = {"encoder": str(encoder), "pooling": subject.pooling, "image_size": stream.size}
    count, dim = 0, subject.extractor.encoder.dim
    with feature_writer(path, notes=json.loads(json.dumps(notes))) as write:
        for part in encode(subject.extractor, stream, progress=progress):
            columns = {name: [getattr(row, name) for row in part.rows] for name in ("file", "split", "label")}
            write(part.features.numpy(), columns)
            count += len(part.rows)
        if not count:
            raise ValueError(f"images={images!r} holds {len(stream)} images, none of which can be read")
    return Embedded(files, count, dim, tuple(stream.skipped), remarks)


def encode(extractor: Extractor, stream: ImageStream, *, progress: bool = False) -> Iterator[Encoded]:
    """Features of the images of a stream, batch by batch.

    Raises:
        ValueError: naming the file, if features are not finite.
    """
    steps = -(-len(stream) // stream.batch_size)
    for batch in track(stream, "encoding", total=steps, disable=not progress, transient=True):
        try:
            yield Encoded(extractor(batch.images), batch.rows)
        except FeatureError as error:
            raise ValueError(f"{batch.rows[error.image].file}: {error}") from None


def open_images(subject: Subject, images: Any, config: ReadingConfig) -> tuple[ImageStream, tuple[str, ...]]:
    """Find the images that a subject is to see, and what to say about them."""
    found = find_images(images, root=config.root)
    channels, size = len(subject.extractor.mean), subject.image_size
    value_range, told = values_of(found.train, channels=channels, given=config.value_range, known=subject.value_range)
    stream = ImageStream(
        found,
        size=None if size is None else (size[0], size[1]),
        channels=channels,
        batch_size=config.batch_size,
        corrupt=config.corrupt,
        value_range=value_range,
    )
    unknown = "" if subject.knows_statistics else "mean and deviation of this encoder are not known: 0.5 is taken"
    return stream, tuple(filter(None, (*found.remarks, told, unknown)))


def _subject(encoder: str | Path, config: EmbedConfig) -> Subject:
    device, dtype = choose_device(config.device, config.precision)
    subject = find_subject(
        str(encoder), image_size=config.image_size, pretrained=config.pretrained, device=device, dtype=dtype
    )
    own, pooled = subject.extractor, config.pooling
    if config.layers > 1 or pooled != "auto":
        reader = PooledLayers(own.encoder, layers=config.layers, pooling="mean" if pooled == "auto" else pooled)
        own = replace(own, encoder=reader)
    return replace(subject, extractor=replace(own, batch_size=config.batch_size))


def run(encoder: str, images: str, config: EmbedConfig) -> str:
    """The command: what was written, in words."""
    done = embed(encoder, images, progress=terminal(stderr=True).is_terminal, **dict(config))
    lines = [*(f"note: {remark}" for remark in done.remarks)]
    if done.skipped:
        lines.append(f"{len(done.skipped)} unreadable images were skipped, {done.skipped[0]} first")
    beside = f"; rows in {done.files[1]}" if done.files[1:] else ""
    lines.append(f"wrote {done.files[0]}: {done.num_images:,} images, {done.dim} features each{beside}")
    return "\n".join(lines)
