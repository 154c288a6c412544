"""Adapter for the plain vision transformers of Hugging Face transformers (extra ``hf``)."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_blocks.encoders.adapter import TokenAdapter, number_layers, refuse_relative_positions, require_plain_stem
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import pair
from ssl_blocks.values import Grid

_MODELS = ("ViTModel", "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel")
# names that layers and the final norm have in one model and version or another
_LAYERS = ("layers", "encoder.layer", "model.layer", "layer")
_NORMS = ("layernorm", "norm")
_PREFIX = ("cls_token", "register_tokens")


class TransformersViT(TokenAdapter):
    """See a ``ViTModel``, ``Dinov2Model``, ``Dinov2WithRegistersModel`` or ``DINOv3ViTModel`` as a token encoder.

    DINOv3's rotations are looked up per token, and prefix tokens are not rotated. Its random augmentation of
    coordinates (``pos_embed_rescale``, on by default) is left out: the output is the same for the same input in
    training mode too.

    Args:
        module: the model, with ``attn_implementation="sdpa"``. For distributed training give a ``ViTModel``
            ``add_pooling_layer=False``, and freeze ``embeddings.mask_token``: what is unused would stall it.

    Raises:
        TypeError: if it is none of these models, or adds relative position biases (BEiT).
        ValueError: if it attends by anything but ``"sdpa"``.

    Examples:
        >>> from transformers import ViTConfig, ViTModel
        >>> size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        >>> encoder = TransformersViT(ViTModel(ViTConfig(image_size=32, patch_size=8, **size)))
        >>> encoder.num_prefix, str(encoder.grid), encoder.features(torch.zeros(1, 3, 32, 32)).shape
        (1, '4x4', torch.Size([1, 16]))
    """

    rope_table: Tensor | None

    def __init__(self, module: nn.Module) -> None:
        _refuse_unfit(module)
        config: Any = module.config
        height, width = (s // p for s, p in zip(_pair(config.image_size), _pair(config.patch_size), strict=True))
        self._layers_at, self._norm_at = _find(module, _LAYERS), _find(module, _NORMS)
        super().__init__(
            module,
            grid=Grid(height, width),
            dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_prefix=sum(token.shape[1] for token in _prefix(module)),
        )
        self.register_buffer("rope_table", self._rotations(), persistent=False)

    @property
    def norm(self) -> nn.Module:
        """The model's final norm."""
        return self.module.get_submodule(self._norm_at)

    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """The model's own ``last_hidden_state``, prefix first."""
        output: Tensor = self.module(images).last_hidden_state
        return output

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter of ``module``, for layer-wise decay: see `ssl_blocks.evaluation.layer_ids`."""
        layers = self.module.get_submodule(self._layers_at)
        return number_layers(self.module, layers.children(), first=self._embeddings().parameters())

    def _embeddings(self) -> Any:
        return self.module.embeddings

    def _stem(self) -> nn.Conv2d:
        return _stem(self.module)

    def _prefix(self) -> list[Tensor]:
        return _prefix(self.module)

    def _positions(self) -> tuple[Tensor | None, int]:
        return getattr(self._embeddings(), "position_embeddings", None), 1  # registers have no rows

    def _entered(self, x: Tensor) -> Tensor:
        dropout = getattr(self._embeddings(), "dropout", None)
        return x if dropout is None else dropout(x)

    def _rotations(self) -> Tensor | None:
        """Cosines and sines in raster order, ``[2, N, d]``, as the model has them outside training."""
        rope = getattr(self.module, "rope_embeddings", None)
        if rope is None:
            return None
        size = (self.grid.height * self.patch[0], self.grid.width * self.patch[1])
        with modes_kept(rope, training=False), torch.no_grad():
            return torch.stack(rope(self._stem().weight.new_empty(1, 1, *size)))

    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        _require_sdpa(self.module)
        layers = self.module.get_submodule(self._layers_at)
        assert isinstance(layers, nn.ModuleList)
        if getattr(layers[0], "gradient_checkpointing", False):
            raise ValueError(
                "transformers' own gradient checkpointing is on, whose recomputation passes the attention kernels of "
                "the encoder by: switch it off in the model and call encoder.set_grad_checkpointing()"
            )
        rope: dict[str, Any] = {}
        if self.rope_table is not None:
            table = self.rope_table.to(self._stem().weight.device)
            # nothing to look up rotates no token: what is not rotated counts as prefix
            looked_up = table[:, None, :0] if index is None else table[:, index]
            rope = {"position_embeddings": tuple(looked_up.unsqueeze(2))}  # each [B, 1, n, d]
        return [_Step(layer, rope) for layer in layers]

    def _spared(self) -> set[str]:
        return {f"embeddings.{name}" for name in (*_PREFIX, "position_embeddings", "mask_token")}


class _Step:
    """A layer, called as all blocks are."""

    def __init__(self, layer: nn.Module, rope: dict[str, Any]) -> None:
        self.func, self.rope = layer, rope

    def __call__(self, x: Float[Tensor, "b s d"], attn_mask: Bool[Tensor, "_ 1 s s"] | None) -> Float[Tensor, "b s d"]:
        out: Tensor = self.func(x, attention_mask=attn_mask, **self.rope)
        return out


def _find(module: nn.Module, names: tuple[str, ...]) -> str:
    inside = dict(module.named_modules())
    return next(name for name in names if name in inside)


def _prefix(module: nn.Module) -> list[Tensor]:
    return [token for name in _PREFIX if (token := getattr(module.embeddings, name, None)) is not None]


def _stem(module: nn.Module) -> nn.Conv2d:
    embed: Any = module.embeddings
    stem: nn.Conv2d = getattr(embed.patch_embeddings, "projection", embed.patch_embeddings)
    return stem


def _pair(value: Any) -> tuple[int, int]:
    return pair(value if isinstance(value, int) else tuple(value))


def _refuse_unfit(module: nn.Module) -> None:
    name = type(module).__name__
    if not type(module).__module__.startswith("transformers.") or name not in _MODELS:
        refuse_relative_positions(module)
        raise TypeError(
            f"{name} is none of transformers' {', '.join(_MODELS)}; of a model with a head, give the part without it"
        )
    require_plain_stem(name, _stem(module))
    layers = module.get_submodule(_find(module, _LAYERS))
    for layer in layers.children():
        if "attention_mask" not in inspect.signature(layer.forward).parameters:
            raise TypeError(
                f"{type(layer).__name__} takes no attention mask (attention_mask), so it cannot be kept causal: "
                "install transformers>=5.18"
            )
    _require_sdpa(module)


def _require_sdpa(module: nn.Module) -> None:
    config: Any = module.config
    if config._attn_implementation != "sdpa":
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} must be 'sdpa': eager attention adds a bool mask to "
            "the scores, which hides nothing, and the others take no such mask"
        )
