"""What timm's families of vision transformers share: where things lie, what is refused, how one is built."""

import difflib
import inspect
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ssl_blocks.encoders.adapter import TokenAdapter, refuse_stem
from ssl_blocks.parts.tokenize import pair
from ssl_blocks.values import Grid

LOCAL, HUB = "local-dir", ("hf-hub", "hf_hub")  # timm's prefixes of names that are no names of its own


class TimmAdapter(TokenAdapter, ABC):
    """The base of the adapters of timm's families.

    Args:
        module: the model, already found fit.
        model_args: arguments that ``timm.create_model`` needs to build it again, noted in exports.
    """

    def __init__(self, module: nn.Module, *, model_args: Mapping[str, Any] | None) -> None:
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

    @property
    def norm(self) -> nn.Module:
        """The model's final norm."""
        norm: nn.Module = self._vit().norm
        return norm

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

    def _stem(self) -> nn.Conv2d:
        stem: nn.Conv2d = self._vit().patch_embed.proj
        return stem

    def _embedded(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self._vit().patch_embed.norm(tokens)
        return embedded

    def _prefix(self) -> list[Tensor]:
        names = ("cls_token", "dist_token", "reg_token")
        return [token for name in names if (token := getattr(self._vit(), name, None)) is not None]

    def _positions(self) -> tuple[Tensor | None, int]:
        return self._vit().pos_embed, 0 if self._vit().no_embed_class else self.num_prefix

    def _entered(self, x: Tensor) -> Tensor:
        entered: Tensor = self._vit().norm_pre(self._vit().pos_drop(x))
        return entered

    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        blocks: Iterable[Callable[..., Tensor]] = self._vit().blocks
        return blocks

    def _spared(self) -> set[str]:
        return set(self._vit().no_weight_decay()) | {"reg_token"}


def require_fit(module: Any) -> None:
    """Refuse what no family of timm may have.

    Raises:
        TypeError: if the stem mixes patches, or blocks take no mask.
        ValueError: if it drops patches at random, or the final norm sits behind the pooling.
    """
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


def create(
    name: str, arguments: dict[str, Any], model_args: dict[str, Any], refuse_unfit: Callable[[nn.Module], object]
) -> nn.Module:
    """Build a model of timm; say why where it cannot be built."""
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except TypeError as error:  # another family: say why it does not fit, rather than which argument it lacks
        refuse_unfit(timm.create_model(name))
        raise TypeError(f"name={name!r} cannot be built with these arguments: {error}") from None
    except (AssertionError, RuntimeError) as error:  # heads that do not divide the width, a tag that there is not
        raise ValueError(f"name={name!r} cannot be built with {model_args}: {error}") from None
    return model


def check_sizes(
    image_size: int | tuple[int, int], patch_size: int | tuple[int, int], model_args: Mapping[str, Any]
) -> None:
    """Refuse sizes that do not divide.

    Raises:
        ValueError: naming the argument.
    """
    for length, side in zip(pair(image_size), pair(patch_size), strict=True):
        if side < 1 or length % side:
            raise ValueError(
                f"patch_size={patch_size} must divide image_size={image_size} ({length} % {side} is not 0)"
            )
    width, heads = model_args.get("embed_dim"), model_args.get("num_heads")
    if width is not None and heads is not None and width % heads:
        raise ValueError(f"num_heads={heads} must divide embed_dim={width}")


def is_on_hub(name: str) -> bool:
    """Whether a name is that of a repository, such as ``hf-hub:timm/vit_tiny_patch16_224.augreg_in21k``."""
    source, _, place = name.partition(":")
    return source in HUB and bool(place)


def check_name(name: str) -> None:
    """Refuse a name that timm does not know. Names may have a tag, or be those of a folder or a repository.

    Raises:
        ValueError: with names that are near it.
        FileNotFoundError: if the folder holds no model.
    """
    source, _, place = name.partition(":")
    if source == LOCAL:
        if not (Path(place) / "config.json").is_file():
            raise FileNotFoundError(f"name={name!r} must name the folder of a model, but there is no config.json in it")
    elif not is_on_hub(name) and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"name={name!r} is no timm model" + (f"; did you mean one of {near}?" if near else ""))
