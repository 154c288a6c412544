"""Adapter for the plain vision transformers of Hugging Face transformers (extra ``hf``)."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import Size, grid_for, resampled
from ssl_blocks.encoders.tokens import TokenAdapter, refuse_relative_positions, require_plain_stem
from ssl_blocks.grid import Grid
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import pair

# what model_type stands for: the only classes that are taken, or that a folder can name
MODELS = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters", "dinov3_vit": "DINOv3ViT"}
_MODELS = tuple(f"{name}Model" for name in MODELS.values())
# keys by which a configuration could name code or kernels, and our own notes
_LEFT_OUT = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "ssl_blocks")
_TABLE = "embeddings.position_embeddings"
# names that layers and the final norm have in one model and version or another
_LAYERS = ("layers", "encoder.layer", "model.layer", "layer")
_NORMS = ("layernorm", "norm")
_PREFIX = ("cls_token", "register_tokens")


@checked
class TransformersViT(TokenAdapter[nn.Module]):
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
        height, width = (s // p for s, p in zip(_sides(config.image_size), _sides(config.patch_size), strict=True))
        self.blocks_at, self.norm_at = _find(module, _LAYERS), _find(module, _NORMS)
        super().__init__(
            module,
            grid=Grid(height, width),
            dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_prefix=sum(token.shape[1] for token in _prefix(module)),
        )
        self.register_buffer("rope_table", self._rotations(), persistent=False)

    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """The model's own ``last_hidden_state``, prefix first."""
        output: Tensor = self.module(images).last_hidden_state
        return output

    @classmethod
    def of(cls, module: nn.Module) -> "TransformersViT | None":
        """The encoder of a model of transformers."""
        return cls(module) if type(module).__module__.startswith("transformers.") else None

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether it is a configuration of transformers."""
        return "architecture" not in config and "model_type" in config

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], image_size: Size | None) -> "TransformersViT":
        """Build the model of a configuration and fill in its weights, without transformers' access to the network."""
        try:
            import transformers  # the extra hf
            from huggingface_hub.errors import StrictDataclassError
        except ImportError as error:
            raise ImportError(f"a model of transformers needs it installed (extra hf): {error}") from error
        kind, state = config["model_type"], load_file(folder / "model.safetensors")
        if kind not in MODELS:
            raise ValueError(f"model_type={kind!r} must be one of {', '.join(MODELS)}")
        arguments = {name: value for name, value in config.items() if name not in _LEFT_OUT}
        if image_size is not None:
            arguments, state = _resized(arguments, state, image_size)
        try:
            own_config = getattr(transformers, f"{MODELS[kind]}Config").from_dict(arguments)
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error
        model, report = getattr(transformers, f"{MODELS[kind]}Model").from_pretrained(
            None,
            config=own_config,
            state_dict=state,  # already read: no path, so nothing else in the folder is looked at
            attn_implementation="sdpa",
            dtype="auto",
            output_loading_info=True,
            **(_parts_of_vit(state) if kind == "vit" else {}),
        )
        wrong = {name: sorted(found)[:3] for name, found in report.items() if found}
        if wrong:
            raise ValueError(f"the weights are not those of the configuration: {wrong}")
        return cls(model)

    def save(self, folder: Path, notes: dict[str, Any]) -> None:
        """Let transformers write its own files, and note ours."""
        model: Any = self.module
        model.save_pretrained(folder, max_shard_size="1TB")  # one file, however large
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ssl_blocks": notes}, indent=2) + "\n")

    def _stem(self) -> Any:
        return _stem(self.module)

    def _prefix(self) -> list[Tensor]:
        return _prefix(self.module)

    def _positions(self) -> tuple[Tensor | None, int]:
        return getattr(self.module.embeddings, "position_embeddings", None), 1  # registers have no rows

    def _entered(self, x: Tensor) -> Tensor:
        dropout = getattr(self.module.embeddings, "dropout", None)
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
        layers = self._layers()
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
        return [partial(_run, layer, rope) for layer in layers]

    def _spared(self) -> set[str]:
        return {f"embeddings.{name}" for name in (*_PREFIX, "position_embeddings", "mask_token")}


def _run(layer: nn.Module, rope: dict[str, Any], x: Tensor, attn_mask: Tensor | None) -> Any:
    return layer(x, attention_mask=attn_mask, **rope)


def _find(module: nn.Module, names: tuple[str, ...]) -> str:
    inside = dict(module.named_modules())
    return next(name for name in names if name in inside)


def _prefix(module: nn.Module) -> list[Tensor]:
    return [token for name in _PREFIX if (token := getattr(module.embeddings, name, None)) is not None]


def _stem(module: nn.Module) -> nn.Conv2d:
    embed: Any = module.embeddings
    stem: nn.Conv2d = getattr(embed.patch_embeddings, "projection", embed.patch_embeddings)
    return stem


def _sides(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """A size in a configuration, which may have come out of JSON."""
    return pair(value if isinstance(value, int) else (value[0], value[1]))


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


def _parts_of_vit(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """What a ``ViTModel`` has by argument rather than by configuration."""
    return {
        "add_pooling_layer": any("pooler." in name for name in state),
        "use_mask_token": any(name.endswith("embeddings.mask_token") for name in state),
    }


def _resized(
    arguments: dict[str, Any], state: dict[str, Tensor], image_size: Size
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    patch, was = _sides(arguments["patch_size"]), _sides(arguments["image_size"])
    old, new = Grid(was[0] // patch[0], was[1] // patch[1]), grid_for(image_size, patch)
    tables = {
        name: resampled(table, old=old, new=new).contiguous() for name, table in state.items() if name.endswith(_TABLE)
    }
    height, width = pair(image_size)
    size = height if height == width else [height, width]
    return {**arguments, "image_size": size}, {**state, **tables}
