"""What timm's families share: their files, their layers, and of vision transformers where things lie."""

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models import group_parameters, save_for_hf
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_blocks.encoders.adapter import Adapter, M, Size, grid_for, noted, resampled
from ssl_blocks.encoders.tokens import TokenAdapter, refuse_stem
from ssl_blocks.grid import Grid
from ssl_blocks.parts.tokenize import pair
from ssl_blocks.quiet import quiet

# what timm says of weights of its own by the name of the architecture, whatever weights a model holds
CLAIMS = (
    *("tag", "url", "file", "hf_hub_id", "hf_hub_filename", "license"),
    *("origin_url", "paper_name", "paper_ids", "notes"),
)
POSITIONS_AND_PREFIX = {"pos_embed", "cls_token", "reg_token", "dist_token"}


def origin_of(model: nn.Module) -> dict[str, str | None] | None:
    """``name`` and ``license`` of the pretrained weights that a model of timm began with, where that is known."""
    origin: dict[str, str | None] | None = getattr(model, "origin", None)
    return origin


class TimmStored(Adapter[M]):
    """A model of timm, in timm's own files, which load without this library, and the arguments that build it again."""

    model_args: dict[str, Any]

    def save(self, folder: Path, notes: dict[str, Any]) -> None:
        """Let timm write its files, and put what its data pipeline asks for where it looks."""
        with quiet("timm.data", logging.ERROR):  # it remarks on a mean and std that are replaced below
            save_for_hf(
                self.module,
                str(folder),
                model_config={"ssl_blocks": notes},
                model_args=self.model_args,
                safe_serialization=True,
            )
        path = folder / "config.json"
        config: dict[str, Any] = json.loads(path.read_text())
        if notes["grid"]:
            size = [length * side for length, side in zip(notes["grid"], notes["patch"], strict=True)]
            config["pretrained_cfg"]["input_size"] = [notes["channels"], *size]
        told = config["pretrained_cfg"]
        for claim in CLAIMS:
            told.pop(claim, None)
        told |= {"mean": notes["mean"], "std": notes["std"], "crop_pct": 1.0, "num_classes": 0}
        told["interpolation"] = "bilinear"  # as this library resizes images
        config["ssl_blocks"]["origin"] = origin = origin_of(self.module)
        if origin and origin["license"]:
            told["license"] = origin["license"]
        path.write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], image_size: Size | None) -> Adapter[Any]:
        """Build the model by timm."""
        model, arguments = load_timm(folder, config, image_size)
        return cls(model, model_args=arguments)  # type: ignore[arg-type, call-arg]

    def redraw(self, folder: Path, image_size: Size | None) -> None:
        """Draw all weights as timm draws them."""
        size = pair(image_size) if image_size is not None and knows_size(self.module) else None
        options: dict[str, Any] = {} if size is None else {"img_size": size}
        fresh = timm.create_model(f"local-dir:{folder}", pretrained=False, **options)
        self._finish(fresh, folder)
        self.module.load_state_dict(fresh.state_dict())

    def _spared(self) -> set[str]:
        own: Any = getattr(self.module, "no_weight_decay", None)
        return set(own()) if own is not None else set()

    def _finish(self, fresh: nn.Module, folder: Path) -> None:
        """What building adds to what timm draws."""

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter of ``module``, as its ``group_matcher`` tells; positions and prefix are layer 0."""
        matcher: Any = getattr(self.module, "group_matcher", None)
        if matcher is None:
            return super().layer_ids()
        ids: dict[str, int] = group_parameters(self.module, matcher(coarse=False), reverse=True)
        return ids | {name: 0 for name in ids if name.rpartition(".")[2] in POSITIONS_AND_PREFIX}


class TimmAdapter(TimmStored[M], TokenAdapter[M]):
    """The base of the adapters of timm's families: of a model already found fit."""

    def __init__(self, module: M, *, model_args: Mapping[str, Any] | None) -> None:
        vit: Any = module
        super().__init__(
            module,
            grid=Grid(*vit.patch_embed.grid_size),
            dim=vit.embed_dim,
            depth=len(vit.blocks),
            num_prefix=vit.num_prefix_tokens,
        )
        self.model_args = dict(model_args or {})

    def _vit(self) -> Any:
        return self._modules["module"]

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter of ``module``; timm counts the final norm with the last block, and we do not."""
        behind = {id(parameter) for parameter in self.norm.parameters()}
        found = {name: self.depth + 1 for name, p in self.module.named_parameters() if id(p) in behind}
        return super().layer_ids() | found

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], image_size: Size | None) -> Adapter[Any]:
        """Build the model by timm and put the adapter around it that fits, whatever is noted."""
        from ssl_blocks.encoders.families import wrap  # which imports this module

        model, arguments = load_timm(folder, config, image_size)
        encoder = wrap(model)
        assert isinstance(encoder, Adapter)
        if isinstance(encoder, TimmAdapter):
            encoder.model_args = arguments
        return encoder

    @property
    def grad_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass: the model's own flag."""
        return bool(self._vit().grad_checkpointing)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are recomputed in the backward pass."""
        self._vit().set_grad_checkpointing(enable)

    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """timm's own normalised output, prefix first."""
        output: Tensor = self._vit().forward_features(images)
        return output

    def _stem(self) -> Any:
        return self._vit().patch_embed.proj

    def _embedded(self, tokens: Tensor) -> Any:
        return self._vit().patch_embed.norm(tokens)

    def _prefix(self) -> list[Tensor]:
        names = ("cls_token", "dist_token", "reg_token")
        return [token for name in names if (token := getattr(self._vit(), name, None)) is not None]

    def _positions(self) -> tuple[Tensor | None, int]:
        return self._vit().pos_embed, 0 if self._vit().no_embed_class else self.num_prefix

    def _entered(self, x: Tensor) -> Any:
        return self._vit().norm_pre(self._vit().pos_drop(x))

    def _spared(self) -> set[str]:
        return super()._spared() | {"reg_token"}


def require_fit(module: Any) -> None:
    """Refuse what no family of timm may have."""
    if type(module.patch_embed) is not PatchEmbed:
        refuse_stem(type(module).__name__, module.patch_embed)
    if module.patch_drop is not None and not isinstance(module.patch_drop, nn.Identity):
        raise ValueError("patch_drop_rate must be 0: the objective decides which patches the encoder sees")
    if isinstance(module.norm, nn.Identity) and not isinstance(module.fc_norm, nn.Identity):
        raise ValueError(
            "the final norm sits behind the pooling (fc_norm), so tokens would stay unnormalised: "
            "build the model with fc_norm=False (Eva: use_fc_norm=False, use_post_transformer_norm=True)"
        )
    for block in module.blocks:
        if "attn_mask" not in inspect.signature(block.forward).parameters:
            raise TypeError(f"{type(block).__name__} takes no attention mask (attn_mask), so it cannot be kept causal")


@contextmanager
def refusals_named(module: nn.Module, images: Tensor) -> Iterator[None]:
    """Say of which images a model could make nothing."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, images.shape[1:]))
        raise ValueError(f"{type(module).__name__} refuses images of {size} pixels: {error}") from error


def load_timm(folder: Path, config: Mapping[str, Any], image_size: Size | None) -> tuple[nn.Module, dict[str, Any]]:
    """A model out of a folder, and the arguments that build it again."""
    model, arguments = timm.create_model(f"local-dir:{folder}", pretrained=True), dict(config.get("model_args") or {})
    origin = noted(config).get("origin")
    if image_size is not None:
        model = _resized(model, folder, image_size)
        if "img_size" in arguments:
            arguments["img_size"] = list(pair(image_size))
    if origin:
        model.origin = origin
    return model, arguments


def _resized(model: nn.Module, folder: Path, image_size: Size) -> nn.Module:
    embed = getattr(model, "patch_embed", None)
    patch = pair(embed.patch_size) if isinstance(embed, PatchEmbed) else (1, 1)
    new = grid_for(image_size, patch)
    if not knows_size(model):
        return model  # convolutions take any size
    if not isinstance(model, VisionTransformer | Eva):
        # windows and tables of relative positions: timm knows them
        again: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=pair(image_size))
        return again
    # by ourselves: older timm takes every stored table for a square one
    assert isinstance(embed, PatchEmbed)
    assert embed.grid_size is not None
    again, state = timm.create_model(f"local-dir:{folder}", img_size=pair(image_size)), model.state_dict()
    if model.pos_embed is not None:
        state["pos_embed"] = resampled(model.pos_embed.detach(), old=Grid(*embed.grid_size), new=new)
    again.load_state_dict(state)
    return again


def knows_size(model: nn.Module) -> bool:
    """Whether its class, or one that it hands its arguments on to, is built for a size of images."""
    return any("img_size" in inspect.signature(kind.__init__).parameters for kind in type(model).__mro__)  # type: ignore[misc]
