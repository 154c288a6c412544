"""Encoders leave and come back: saved where timm or transformers load them, too, loaded, drawn anew, traced."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from ssl_blocks.bounds import Positive, Seed
from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import ImageSizeError, Size
from ssl_blocks.encoders.card import CARD, plain_card
from ssl_blocks.encoders.families import rebuild
from ssl_blocks.encoders.pooled import adapter_of
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.files import at_home, read_json
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import StoredTokenizer, Tokenizer

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMAT_VERSION = 1
# what a damaged file or a foreign configuration leads to, in json, safetensors, timm, transformers and torch
_DAMAGED = (ValueError, TypeError, LookupError, RuntimeError, AttributeError, AssertionError, SafetensorError)


@checked
def export_encoder(
    encoder: FeatureEncoder,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None,
    mean: tuple[float, ...],
    std: tuple[Positive, ...],
    value_range: tuple[float, float] | None = None,
) -> Path:
    """Write ``config.json``, ``model.safetensors`` and a model card; an earlier export is replaced as a whole.

    ``ssl_blocks.encoders.load_encoder`` loads it again, with equal features. Others load it without this library:

    - A model of timm: ``timm.create_model("local-dir:FOLDER", pretrained=True)``. Calling it returns the mean over
      normalised patch tokens, the same features as the encoder's, if the model was built so, as ``timm_vit`` does.
    - A model of transformers: ``transformers.AutoModel.from_pretrained(FOLDER)``.

    Of torchvision's ``VisionTransformer``, of ``TorchEncoder`` and of ``PostNormTransformer`` the configuration holds
    what they are built from.

    Args:
        encoder: what to save; any encoder of this library.
        folder: where to; new, empty, or an earlier export. ``~`` is the home folder.
        tokenizer: how pretraining cut the images, noted in the configuration; ``None`` where it did not. Evaluation
            builds it again where it is a `StoredTokenizer`.
        mean: per channel on the 0..1 scale.
        std: likewise.
        value_range: which values of images of more than 8 bits are 0 and 1 on that scale; ``None``: it saw 8 bits.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder holds anything else; nothing is touched.
        TypeError: if the encoder is of no such kind, or has a part that could not be built again, with the reason.
    """
    adapter, folder = adapter_of(encoder), at_home(folder)
    _require_replaceable(folder)
    place = folder.resolve()  # a link stays one
    fresh = place.with_name(f".{place.name}.{os.getpid()}.incomplete")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        adapter.save(fresh, _notes(encoder, tokenizer, mean=mean, std=std, value_range=value_range))
        card = plain_card(folder, json.loads((fresh / "config.json").read_text()))
        (fresh / CARD).write_text(card)
        shutil.copymode(fresh / CARD, fresh / "model.safetensors")  # safetensors gives its files to their owner alone
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, SafetensorError):  # of a full disk, say
            raise OSError(f"{folder} could not be written ({error})") from error
        raise
    shutil.rmtree(place, ignore_errors=True)
    os.replace(fresh, place)
    return folder


def _require_replaceable(folder: Path) -> None:
    """Refuse a folder with anything in it but an export, which has no folders inside."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"folder={str(folder)!r} must be a folder to export to, but is a file")
    found = sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name))
    try:
        is_export = "ssl_blocks" in json.loads((folder / "config.json").read_text()) and found[0].is_file()
    except (OSError, ValueError, TypeError):
        is_export = not found
    if not is_export:
        raise FileExistsError(
            f"folder={str(folder)!r} must be new, empty or an earlier export, but holds {found[0].name!r}, which an "
            "export would delete: give another folder"
        )


def _notes(encoder: FeatureEncoder, tokenizer: Tokenizer | None, **known: Any) -> dict[str, Any]:
    """What evaluation asks for, and loading beyond the model itself."""
    return {
        "format_version": FORMAT_VERSION,
        "encoder": type(encoder).__name__,
        "patch": None if tokenizer is None else list(tokenizer.patch),
        "crop": getattr(tokenizer, "crop", 0),
        "grid": None if tokenizer is None else list(tokenizer.grid.sizes),
        "image_size": None if tokenizer is None else list(getattr(tokenizer, "image_size", ())) or None,
        "tokenizer": tokenizer_note(tokenizer),
        "channels": encoder.channels,
        **known,
        "pooling": getattr(encoder, "pooling", "mean of normalised patch tokens"),
    }


def tokenizer_note(tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    """Which class a tokenizer is of, and what builds it again; ``None`` of what is no `StoredTokenizer`."""
    if tokenizer is None:
        return None
    kind, main = type(tokenizer), sys.modules["__main__"]
    module = kind.__module__
    if module == "__main__":  # a script: others import it by its name
        spec = getattr(main, "__spec__", None)
        module = spec.name if spec else Path(getattr(main, "__file__", None) or module).stem
    arguments = tokenizer.describe() if isinstance(tokenizer, StoredTokenizer) else None
    return {"name": f"{module}:{kind.__qualname__}", "arguments": arguments}


@checked
def load_encoder(folder: str | Path, *, image_size: Size | None = None) -> FeatureEncoder:
    """Load an encoder that a run or ``ssl_blocks.encoders.export_encoder`` has saved, in evaluation mode.

    It is of the kind that was saved, with equal features: a ``TokenEncoder`` for vision transformers, a
    ``RegionEncoder`` where ``TimmRegions`` or ``TokenRegions`` was saved. Folders that timm or transformers have
    written themselves can be loaded, too. Nothing is fetched from a network, and no code of the folder is run.

    At another ``image_size`` position tables are resampled (bicubically), fixed tables of sines and
    cosines like learned ones. Rotary positions follow the grid by themselves, and what has no positions gets the grid
    alone. Windows of Swin follow timm's rules; convolutions take any size and stay as they are.

    Args:
        folder: what was exported: ``config.json`` and ``model.safetensors``; ``~`` is the home folder.
        image_size: pixels along each axis, height and width; one number means a square. ``None``: as it was saved.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are no export, damaged, or do not fit each other; if the encoder's patch does not divide
            ``image_size``, or the model takes squares alone (torchvision's).
        ImportError: if it is a model of transformers, which is not installed.

    Examples:
        >>> import tempfile, torch
        >>> from ssl_blocks.encoders import PostNormTransformer
        >>> encoder = PostNormTransformer(grid=2, patch=4, depth=1, num_heads=2)
        >>> half = (0.5, 0.5, 0.5)
        >>> folder = export_encoder(encoder, Path(tempfile.mkdtemp()) / "encoder", tokenizer=None, mean=half, std=half)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(load_encoder(folder).features(images), encoder.features(images))
        True
        >>> load_encoder(folder, image_size=(12, 16)).features(torch.rand(2, 3, 12, 16)).shape
        torch.Size([2, 48])
    """
    folder = at_home(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder={str(folder)!r} must be an exported encoder, but {name} is not in it")
    try:
        encoder = rebuild(folder, read_json(folder / "config.json"), image_size)
    except ImageSizeError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"folder={str(folder)!r} holds no encoder that can be loaded: {type(error).__name__}: {reason}"
        ) from error
    encoder.module.eval()
    return encoder


@checked
def untrained(folder: str | Path, *, seed: Seed, image_size: Size | None = None) -> FeatureEncoder:
    """Load an exported encoder and draw all its weights anew; fixed tables of positions stay.

    Models of timm are drawn as timm draws them: one built by ``timm_vit`` right after ``torch.manual_seed(seed)``
    comes out the same. Layers of other models are drawn as torch draws them, their tables and tokens from
    N(0, 0.02²). torch's own generator is left alone. Folder, image size and errors are as for `load_encoder`.

    Examples:
        >>> import tempfile
        >>> from ssl_blocks.encoders import timm_vit
        >>> _ = torch.manual_seed(3)
        >>> encoder = timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2).eval()
        >>> half = (0.5, 0.5, 0.5)
        >>> folder = export_encoder(encoder, Path(tempfile.mkdtemp()) / "encoder", tokenizer=None, mean=half, std=half)
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(untrained(folder, seed=3).features(images), encoder.features(images))
        True
    """
    with torch.random.fork_rng(devices=[]):
        encoder = load_encoder(folder, image_size=image_size)
        torch.manual_seed(seed)
        adapter_of(encoder).redraw(at_home(folder), image_size)
    return encoder


@checked
def trace_features(encoder: FeatureEncoder, images: Float[Tensor, "b c *s"]) -> "ExportedProgram":
    """Trace an encoder's features with ``torch.export``, for any number of images of one size.

    The program holds the weights, runs in evaluation mode, and is saved by ``torch.export.save``. Called as
    ``program.module()(images)``, it returns ``[B, D]``. Of the images ``[B, C, H, W]``, at least two, from which a free
    batch size can be seen, only shape, dtype and device matter.

    Raises:
        ValueError: if there are fewer than two images.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=8, num_heads=2)
        >>> program = trace_features(encoder, torch.zeros(2, 3, 8, 8))
        >>> program.module()(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 8])
    """
    if len(images) < 2:
        raise ValueError(f"images must be at least 2 for a program of any batch size, got {len(images)}")
    from torch.export import Dim, export  # slow to import

    model = _Features(encoder)
    with modes_kept(model, training=False), torch.no_grad():
        return export(model.eval(), (images,), dynamic_shapes=({0: Dim("batch")},))


class _Features(nn.Module):
    def __init__(self, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)
