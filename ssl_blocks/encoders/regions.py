"""Encoders of regions: any timm model that ends in a map of features, and the tokens of a vision transformer."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d, RmsNorm, RmsNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_blocks.bounds import Channels
from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import Adapter, Size, noted, refuse
from ssl_blocks.encoders.pooled import adapter_of
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.encoders.timm_building import check_name, class_of, create_pretrained, placed, rebuilding
from ssl_blocks.encoders.timm_models import TimmStored, load_timm, refusals_named
from ssl_blocks.grid import Grid
from ssl_blocks.parts.tokenize import cut_cells, pair
from ssl_blocks.values import Regions


@checked
class TimmRegions(TimmStored[nn.Module]):
    """See a timm model as an encoder of regions: its last map, normalised; the model itself stays as it is.

    Swin, PVT, ConvNeXt, ResNet and whatever else has timm's ``forward_intermediates``. The feature of an image is the
    mean over its normalised regions, as in EsViT. For models that normalise before they pool (Swin) that is what the
    plain model returns; those that pool first (ConvNeXt) return something a little different.

    Args:
        module: the model. Build it with ``num_classes=0``: an unused head would stall distributed training.
        norm: final norm of the map; ``None`` looks where timm's models keep theirs. ``nn.Identity()`` means none.
        model_args: arguments that ``timm.create_model`` needs to build it again, noted in exports. ``timm_regions``
            fills them in.

    Raises:
        TypeError: if the model has no map of regions.
        ValueError: if its final norm is not found.

    Examples:
        >>> encoder = TimmRegions(timm.create_model("resnet18", num_classes=0))
        >>> regions = encoder.regions(torch.zeros(2, 3, 64, 96))
        >>> regions.map.shape, str(regions.grid), regions.pooled.shape
        (torch.Size([2, 6, 512]), '2x3', torch.Size([2, 512]))
    """

    pooling = "mean of normalised regions"

    def __init__(
        self, module: nn.Module, *, norm: nn.Module | None = None, model_args: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(module)
        name = type(module).__name__
        stem = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
        if not hasattr(module, "forward_intermediates") or stem is None:
            raise TypeError(
                f"{name} has no map of regions: expected an image model of timm with forward_intermediates, such as "
                "swin_tiny_patch4_window7_224"
            )
        self.dim, self.channels = _last_width(module), stem.in_channels
        self.model_args = dict(model_args or {})
        self.given_norm = norm  # the model's own is reached through it, and saved once
        self._path, self.is_last_dim = _find_norm(module, self.dim) if norm is None else ("", _takes_last_dim(norm))

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], image_size: Size | None) -> "TimmRegions":
        """Build the model by timm, and find the norm that was given."""
        model, arguments = load_timm(folder, config, image_size)
        place = noted(config).get("norm")
        norm = None if place is None else model.get_submodule(place) if place else nn.Identity()
        return cls(model, norm=norm, model_args=arguments)

    def save(self, folder: Path, notes: dict[str, Any]) -> None:
        """Note where the norm lies that was given: a name, nothing for none, ``None`` for timm's own place."""
        norm = self.given_norm
        name = next((name for name, part in self.module.named_modules() if part is norm), None)
        if norm is not None and name is None and type(norm) is not nn.Identity:
            refuse(
                "TimmRegions",
                f"norm={type(norm).__name__} is no part of module={type(self.module).__name__}, so its weights would "
                "not be saved",
            )
        super().save(folder, notes | {"norm": None if norm is None else name or ""})

    @property
    def norm(self) -> nn.Module:
        """What normalises the map."""
        if self.given_norm is not None:
            return self.given_norm
        return self.module.get_submodule(self._path) if self._path else nn.Identity()

    def regions(self, images: Float[Tensor, "b c h w"]) -> Regions:
        """Features of every region and of the whole image, ``[B, C, H, W]`` of any size that the model takes.

        Raises:
            ValueError: if the model refuses images of this size or number of channels.
        """
        with refusals_named(self.module, images):
            found = self.module.forward_intermediates(  # type: ignore[operator]
                images, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True
            )
        last: Tensor = found[-1]
        tokens = (last if self.is_last_dim else self.norm(last)).flatten(2).transpose(1, 2)
        normed = self.norm(tokens) if self.is_last_dim else tokens
        return Regions(map=normed, pooled=normed.mean(1), grid=Grid(*last.shape[2:]))

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Mean over the normalised regions, ``[B, D]``."""
        return self.regions(images).pooled


@checked
class TokenRegions(Adapter[nn.Module]):
    """See a vision transformer's patch tokens as regions, and its class token as the feature of the image.

    DINO; EsViT, Sec. 3. Smaller images than the encoder was built for are cut into its patches, and these are placed
    at evenly spread cells of its grid: a crop of 3x3 patches on a 6x6 grid lies on rows and columns 1, 3 and 5. Any
    token encoder can do that, whatever its positions.

    Args:
        encoder: any token encoder.
        class_token: whether the first prefix token is the feature of the image; otherwise it is the mean of the patch
            tokens. ``None``: yes where there is a prefix token.

    Raises:
        ValueError: if ``class_token`` is asked of an encoder without prefix tokens.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = TokenRegions(timm_vit(image_size=32, patch_size=4, depth=1, class_token=True))
        >>> encoder.regions(torch.zeros(2, 3, 16, 16)).map.shape
        torch.Size([2, 16, 192])
    """

    def __init__(self, encoder: TokenEncoder, *, class_token: bool | None = None) -> None:
        super().__init__()
        if class_token and not encoder.num_prefix:
            raise ValueError("class_token=True needs an encoder with a prefix token, got num_prefix=0")
        self.encoder = encoder
        self.class_token = bool(encoder.num_prefix) if class_token is None else class_token
        self.dim, self.channels = encoder.dim, encoder.channels
        self.pooling = "class token" if self.class_token else "mean of normalised patch tokens"

    @property
    def module(self) -> nn.Module:
        """The user's own model, unpatched."""
        return self.encoder.module

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter of ``module``, as the encoder inside tells."""
        return adapter_of(self.encoder).layer_ids()

    def _spared(self) -> set[str]:
        return adapter_of(self.encoder)._spared()

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], image_size: Size | None) -> "TokenRegions":
        """Load the encoder inside, whatever its family."""
        from ssl_blocks.encoders.families import rebuild  # which imports this module

        encoder = rebuild(folder, {**config, "ssl_blocks": None}, image_size)
        assert isinstance(encoder, TokenEncoder)
        return cls(encoder, class_token=noted(config)["pooling"] == "class token")

    def save(self, folder: Path, notes: dict[str, Any]) -> None:
        """Save the encoder inside."""
        adapter_of(self.encoder).save(folder, notes)

    def redraw(self, folder: Path, image_size: Size | None) -> None:
        """Draw the encoder inside anew."""
        adapter_of(self.encoder).redraw(folder, image_size)

    def regions(self, images: Float[Tensor, "b c h w"]) -> Regions:
        """Features of every patch and of the whole image, ``[B, C, H, W]``, no larger than the encoder was built for.

        Raises:
            ValueError: if the patch does not divide the images, or they are larger than the encoder's.
        """
        grid, patches = self._cut(images)
        index = _spread_cells(grid, self.encoder.grid, images.device).expand(images.shape[0], -1)
        final = self.encoder.encode(self.encoder.embed(patches), index).final
        tokens = final[:, self.encoder.num_prefix :]
        return Regions(map=tokens, pooled=final[:, 0] if self.class_token else tokens.mean(1), grid=grid)

    def _cut(self, images: Tensor) -> tuple[Grid, Tensor]:
        (p, q), most = self.encoder.patch, self.encoder.grid
        channels, height, width = images.shape[1:]
        fits = not height % p and not width % q and 0 < height <= most.height * p and 0 < width <= most.width * q
        if not fits or channels != self.channels:
            raise ValueError(
                f"{type(self.module).__name__} refuses images of {channels}x{height}x{width} pixels: expected "
                f"{self.channels} channels and at most {most} patches of {p}x{q}"
            )
        return Grid(height // p, width // q), cut_cells(images, (p, q))

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The class token, or the mean of the patch tokens, ``[B, D]``."""
        return self.regions(images).pooled


def _spread_cells(grid: Grid, on: Grid, device: torch.device) -> Tensor:
    """Raster indices ``[n]`` of the cells of a grid spread evenly on a larger one."""
    row, column = (
        ((2 * torch.arange(n, device=device) + 1) * length).div(2 * n, rounding_mode="floor")
        for n, length in ((grid.height, on.height), (grid.width, on.width))
    )
    return (row[:, None] * on.width + column).flatten()


@checked
def timm_regions(
    name: str = "swin_tiny_patch4_window7_224",
    *,
    image_size: Size,
    channels: Channels = 3,
    pretrained: bool = False,
    **model_args: Any,
) -> TimmRegions:
    """Build a timm model that ends in a map, and wrap it.

    It has no classifier and pools by averaging. Where the model knows an image size (Swin), smaller crops than
    ``image_size`` are let through, with windows padded.

    Args:
        name: any timm model with a map of regions.
        image_size: height and width of global crops in pixels; one number means a square.
        channels: colour channels of the images.
        pretrained: start from the weights that belong to the name, all but the head's, as for `timm_vit`; where window
            or image size are others, timm resamples the tables of relative positions.
        **model_args: handed to timm, for example ``patch_size=2, window_size=4, depths=(2, 2), num_heads=(2, 4)``.

    Raises:
        ValueError: if the name is unknown, the model cannot be built so, or its weights cannot be loaded.
        TypeError: if the model has no map of regions.

    Examples:
        >>> size = {"patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
        >>> encoder = timm_regions(image_size=32, **size)
        >>> [str(encoder.regions(torch.zeros(1, 3, side, side)).grid) for side in (32, 16)]
        ['8x8', '4x4']
    """
    name = placed(name)
    check_name(name)
    takes = inspect.signature(class_of(name)).parameters
    sized: dict[str, Any] = {"img_size": pair(image_size)} if "img_size" in takes else {}
    if "strict_img_size" in takes:
        sized["strict_img_size"] = False
    arguments = {**sized, "in_chans": channels, "num_classes": 0, **model_args}
    if pretrained:
        return TimmRegions(create_pretrained(name, arguments), model_args=rebuilding(name, arguments))
    try:
        model = timm.create_model(name, **arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"name={name!r} cannot be built with {model_args}: {error}") from error
    return TimmRegions(model, model_args=arguments)


def _last_width(module: nn.Module) -> int:
    info = getattr(module, "feature_info", None)
    stages = getattr(info, "info", info)
    width: int = stages[-1]["num_chs"] if stages else module.num_features  # type: ignore[assignment]
    return width


def _find_norm(module: nn.Module, dim: int) -> tuple[str, bool]:
    """Where the norm lies that timm's models of this kind end with, and whether it takes channels last; "" for none."""
    parts = dict(module.named_modules(remove_duplicate=False))
    places = [place for place in ("norm", "head.norm") if not isinstance(parts.get(place), nn.Identity | None)]
    for place in places:
        weight: Any = getattr(parts[place], "weight", None)
        if weight is not None and weight.numel() == dim:
            return place, _takes_last_dim(parts[place])
    stages = parts.get("stages")
    ends_normed = isinstance(stages, nn.Sequential | nn.ModuleList) and hasattr(stages[-1], "norm")
    if not places and (ends_normed or any(isinstance(part, _BatchNorm) for part in module.modules())):
        return "", False  # PVT: norms in stages; ResNet: batch norms
    raise ValueError(
        f"the final norm of {type(module).__name__} was not found in norm or head.norm, for a width of {dim}: "
        "give norm=, nn.Identity() for none"
    )


def _takes_last_dim(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm | RmsNorm | nn.RMSNorm) and not isinstance(norm, LayerNorm2d | RmsNorm2d)
