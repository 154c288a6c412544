"""transformers' vision transformers: its own files, read without its access to the network."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_blocks.encoders.storage.parts import grid_for, resampled
from ssl_blocks.encoders.transformers import TransformersViT
from ssl_blocks.parts.tokenize import pair
from ssl_blocks.values import Grid

# what model_type stands for: the only classes that a folder can name
MODELS = {
    "vit": "ViT",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    "dinov3_vit": "DINOv3ViT",
}
# keys by which a configuration could name code or kernels, and our own notes
_LEFT_OUT = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "ssl_blocks")
_TABLE = "embeddings.position_embeddings"


def load(
    config: Mapping[str, Any], state: Mapping[str, Tensor], image_size: int | tuple[int, int] | None
) -> TransformersViT:
    """Build the model of a configuration and fill in its weights.

    Raises:
        ImportError: if transformers is not installed.
        ValueError: if the model is none that the adapter takes, or the weights are not its own.
    """
    try:
        import transformers  # the extra hf
        from huggingface_hub.errors import StrictDataclassError
    except ImportError as error:
        raise ImportError(f"a model of transformers needs it installed (extra hf): {error}") from error
    kind, state = config["model_type"], dict(state)
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
    return TransformersViT(model)


def _parts_of_vit(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """What a ``ViTModel`` has by argument rather than by configuration."""
    return {
        "add_pooling_layer": any("pooler." in name for name in state),
        "use_mask_token": any(name.endswith("embeddings.mask_token") for name in state),
    }


def _resized(
    arguments: dict[str, Any], state: dict[str, Tensor], image_size: int | tuple[int, int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    patch, was = _pair(arguments["patch_size"]), _pair(arguments["image_size"])
    old, new = Grid(was[0] // patch[0], was[1] // patch[1]), grid_for(image_size, patch)
    tables = {
        name: resampled(table, old=old, new=new).contiguous() for name, table in state.items() if name.endswith(_TABLE)
    }
    height, width = pair(image_size)
    size = height if height == width else [height, width]
    return {**arguments, "image_size": size}, {**state, **tables}


def _pair(value: int | list[int]) -> tuple[int, int]:
    return pair(value if isinstance(value, int) else (value[0], value[1]))
