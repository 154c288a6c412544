"""What is asked of every family of encoders, and what those share that have no files of their own."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_blocks.bounds import Pixels
from ssl_blocks.grid import Grid
from ssl_blocks.modes import without_weights
from ssl_blocks.parts.position import resample_positions

M = TypeVar("M", bound=nn.Module)
Size = Pixels | tuple[Pixels, ...]


class Adapter(nn.Module, ABC, Generic[M]):
    """A model seen as an encoder, and what is asked of its family beside: to be known, saved, loaded, drawn anew.

    A family is one file with one such class, which stands in ``ssl_blocks.encoders.ADAPTERS``.

    Args:
        module: the model, already found fit; ``None`` where a class says by itself what its model is.
    """

    dim: int
    channels: int
    pooling = "mean of normalised patch tokens"
    wraps: ClassVar[type[nn.Module] | tuple[()]] = ()  # the models that ``of`` takes

    def __init__(self, module: M | None = None) -> None:
        super().__init__()
        if module is not None:
            self._modules["module"] = module

    @property
    def module(self) -> M:
        """The user's own model, unpatched."""
        # a property: from Python 3.12 on, isinstance of a protocol passes over what nn.Module keeps elsewhere
        module: Any = self._modules["module"]
        return module  # type: ignore[no-any-return]

    @abstractmethod
    def features(self, images: Float[Tensor, "..."]) -> Float[Tensor, "b d"]:
        """One vector per image, ``[B, D]``."""

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b d"]:
        """The same as ``features``, so that the encoder can be called, traced and compiled as any module."""
        return self.features(*inputs)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare: positions and prefix tokens."""
        return {f"module.{name}" for name in self._spared()}

    def _spared(self) -> set[str]:
        """Names inside the model that weight decay must spare."""
        return set()

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter of ``module``, for layer-wise decay: 0 the embedding, i block i, then what follows.

        Raises:
            NotImplementedError: if the layers are not known.
        """
        raise NotImplementedError

    @classmethod
    def of(cls, module: nn.Module) -> "Adapter[Any] | None":
        """The encoder of a model for ``wrap``; ``None`` for one of another family, or if the user has to say more."""
        return cls(module) if isinstance(module, cls.wraps) else None  # type: ignore[arg-type]

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether ``load`` understands an exported configuration; asked in the order of ``ADAPTERS``."""
        return bool(noted(config).get("encoder") == cls.__name__)

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: Mapping[str, Any], image_size: Size | None) -> "Adapter[Any]":
        """Build what was saved, with its weights, for inputs of another size where one is given."""

    def save(self, folder: Path, notes: dict[str, Any]) -> None:
        """Write ``config.json``, with ``notes`` in it, and ``model.safetensors``."""
        raise TypeError(f"encoder must be one of this library's to be exported, got {type(self).__name__}")

    @torch.no_grad()
    def redraw(self, folder: Path, image_size: Size | None) -> None:
        """Draw all weights anew with torch's generator: layers as torch draws them, tables and tokens N(0, 0.02²)."""
        for part in self.module.modules():
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
            if callable(reset) and not isinstance(part, nn.TransformerEncoder):
                reset()
                continue
            for own in part.parameters(recurse=False):
                nn.init.normal_(own, std=0.02) if own.ndim > 1 else nn.init.ones_(own)  # ones: scales of layers


def noted(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What this library noted in an exported configuration."""
    return config.get("ssl_blocks") or {}


class Description(NamedTuple):
    """An encoder as plain values, which go into JSON, and weights."""

    model_args: dict[str, Any]
    state: Mapping[str, Tensor]


class DescribedAdapter(Adapter[M]):
    """A family without files of its own: saved as plain values and weights, and built from them again."""

    architecture: ClassVar[str]  # its name in configurations

    def describe(self) -> Description:
        """What it is built from, and its weights."""
        module: Any = self.module
        return Description(module.model_args, module.state_dict())

    @classmethod
    @abstractmethod
    def rebuild(cls, model_args: Mapping[str, Any]) -> "DescribedAdapter[M]":
        """The same encoder, with weights to be filled in."""

    @classmethod
    @abstractmethod
    def resized(cls, stored: Description, image_size: Size) -> Description:
        """For another input size."""

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether a configuration names this family."""
        return bool(config.get("architecture") == cls.architecture)

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], image_size: Size | None) -> "DescribedAdapter[M]":
        """Build what a configuration describes, and fill in the weights beside it."""
        # JSON has no tuples
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in config["model_args"].items()}
        stored = Description(arguments, load_file(folder / "model.safetensors"))
        if image_size is not None:
            stored = cls.resized(stored, image_size)
        with without_weights():  # no random numbers are used up
            encoder = cls.rebuild(stored.model_args)
        # copies: what was read lies in the file's own memory, and not where kernels would have it
        state = {name: weight.clone() for name, weight in stored.state.items()}
        encoder.module.load_state_dict(state, assign=True)
        return encoder

    def save(self, folder: Path, notes: dict[str, Any]) -> None:
        """Write the description and the weights."""
        model_args, weights = self.describe()
        folder.mkdir(parents=True)
        # copies: what layers share is saved for each of them
        state = {name: w.detach().clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
        save_file(state, folder / "model.safetensors")
        config = {"architecture": self.architecture, "model_args": model_args, "ssl_blocks": notes}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class ImageSizeError(ValueError):
    """An input size that the encoder cannot have: wrong input, whatever the folder holds."""


def grid_for(image_size: Size, patch: tuple[int, ...]) -> Grid:
    """The grid of an input size."""
    sides = (image_size,) * len(patch) if isinstance(image_size, int) else image_size
    if len(sides) != len(patch):
        raise ImageSizeError(f"image_size={image_size} must have a number for each axis of the encoder's patch {patch}")
    for length, side in zip(sides, patch, strict=True):
        if length < 1 or length % side:
            raise ImageSizeError(
                f"image_size={image_size} must be a positive multiple of the encoder's patch of "
                f"{'x'.join(map(str, patch))} pixels, got {length} for {side}"
            )
    return Grid(*(length // side for length, side in zip(sides, patch, strict=True)))


def resampled(table: Tensor, *, old: Grid, new: Grid) -> Tensor:
    """A table of positions for another grid, in the dimensions that it has; what precedes the grid's rows stays."""
    dim = table.shape[-1]
    flat = table.reshape(1, -1, dim)
    rows = resample_positions(flat, old=old, new=new, num_prefix=flat.shape[1] - old.num_tokens)
    return rows.reshape(*table.shape[:-2], -1, dim)


def refuse(owner: str, reason: str) -> NoReturn:
    """Say why an encoder cannot be exported."""
    raise TypeError(f"{owner} cannot be exported: {reason}")


def require_same(owner: str, module: nn.Module, again: nn.Module, *, passed_over: tuple[str, ...] = ()) -> None:
    """Refuse a model that is not built again as it is."""
    found, built = _inventory(module), _inventory(again)
    for name in {**found, **built}:
        ours, theirs = found.get(name, "missing"), built.get(name, "nothing")
        if ours != theirs and not name.startswith(passed_over):
            refuse(owner, f"{name} is {ours}, and {theirs} is what would be built again")


def _inventory(module: nn.Module) -> dict[str, str]:
    """What every layer and every weight is, sizes and rates included."""
    parts = {name or "module": _words(part) for name, part in module.named_modules(remove_duplicate=False)}
    return parts | {name: f"of shape {tuple(weight.shape)}" for name, weight in module.state_dict().items()}


def _words(part: nn.Module) -> str:
    more = part.extra_repr()
    if isinstance(part, nn.MultiheadAttention):  # which says nothing of itself
        more = f"heads={part.num_heads}, dropout={part.dropout}, batch_first={part.batch_first}"
    if isinstance(part, nn.TransformerEncoderLayer):
        more = f"norm_first={part.norm_first}"
    home = type(part).__module__.partition(".")[0]
    return f"{home}'s {type(part).__name__}({more})"
