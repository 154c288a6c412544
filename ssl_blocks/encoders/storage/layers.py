"""``TorchEncoder``, stored and built again, whatever the model is called whose parts it runs."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_blocks.encoders.storage.parts import Stored, grid_for, refuse, require_same, require_type, resampled
from ssl_blocks.encoders.torch import TorchEncoder
from ssl_blocks.values import Grid

NAME = "TorchEncoder"
_LINEAR, _NORM = ("linear1", "linear2"), ("norm1", "norm2")


def describe(encoder: TorchEncoder) -> Stored:
    """The sizes of its parts, and their weights under the names ``stem``, ``encoder``, ``positions`` and ``prefix``.

    Raises:
        TypeError: if a part is of another type than torch's own, layers differ, or the activation has no name.
    """
    module: Any = encoder.gathered()
    stem, layers, norm = module.stem, module.encoder.layers, module.encoder.norm
    require_type(NAME, "stem", stem, nn.Conv2d)
    if norm is not None:
        require_type(NAME, "the final norm", norm, nn.LayerNorm)
    sizes = [_layer(f"layer {number}", layer) for number, layer in enumerate(layers)]
    for number, other in enumerate(sizes):
        if other != sizes[0]:
            name = next(name for name in other if other[name] != sizes[0][name])
            refuse(NAME, f"layer {number} has {name}={other[name]!r}, layer 0 {sizes[0][name]!r}: all must be equal")
    arguments = {
        "grid": [encoder.grid.height, encoder.grid.width],
        "patch": list(encoder.patch),
        "channels": encoder.channels,
        "stem_bias": stem.bias is not None,
        "depth": encoder.depth,
        "layer": sizes[0],
        "norm": None if norm is None else _norm(norm),
        "positions": _tensor(getattr(module, "positions", None)),
        "prefix": _tensor(getattr(module, "prefix", None)),
    }
    with torch.device("meta"):
        again = rebuild(arguments)
    # the stem is known to be plain, however its padding of nothing is spelt; so are activations, functions or modules
    activations = tuple(f"encoder.layers.{number}.activation" for number in range(encoder.depth))
    require_same(NAME, module, again.module, passed_over=("stem", *activations))
    return Stored(NAME, arguments, module.state_dict())


def rebuild(model_args: Mapping[str, Any]) -> TorchEncoder:
    """The same parts, gathered, with weights to be filled in."""
    height, width = model_args["patch"]
    layer = nn.TransformerEncoderLayer(**model_args["layer"])
    dim, norm = model_args["layer"]["d_model"], model_args["norm"]
    layers = nn.TransformerEncoder(
        layer,
        model_args["depth"],
        norm=None if norm is None else nn.LayerNorm(dim, **norm),
        enable_nested_tensor=False,
    )
    stem = nn.Conv2d(model_args["channels"], dim, (height, width), (height, width), bias=model_args["stem_bias"])
    positions, prefix = _empty(model_args["positions"]), _empty(model_args["prefix"])
    return TorchEncoder(layers, stem=stem, grid=Grid(*model_args["grid"]), positions=positions, prefix=prefix)


def resized(stored: Stored, image_size: int | tuple[int, int]) -> Stored:
    """For another input size: another grid, and positions for it."""
    height, width = stored.model_args["patch"]
    old, new = Grid(*stored.model_args["grid"]), grid_for(image_size, (height, width))
    arguments, state = {**stored.model_args, "grid": [new.height, new.width]}, dict(stored.state)
    if arguments["positions"] is not None:
        state["positions"] = resampled(state["positions"], old=old, new=new)
        arguments["positions"] = {**arguments["positions"], "shape": list(state["positions"].shape)}
    return Stored(NAME, arguments, state)


def _layer(owner: str, layer: nn.TransformerEncoderLayer) -> dict[str, Any]:
    for name in _LINEAR:
        require_type(NAME, f"{name} of {owner}", getattr(layer, name), nn.Linear)
    for name in _NORM:
        require_type(NAME, f"{name} of {owner}", getattr(layer, name), nn.LayerNorm)
    require_type(NAME, f"dropout of {owner}", layer.dropout, nn.Dropout)
    return {
        "d_model": layer.self_attn.embed_dim,
        "nhead": layer.self_attn.num_heads,
        "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.dropout.p,
        "activation": _activation(owner, layer.activation),
        "layer_norm_eps": layer.norm1.eps,
        "batch_first": layer.self_attn.batch_first,
        "norm_first": layer.norm_first,
        "bias": layer.linear1.bias is not None,
    }


def _activation(owner: str, activation: object) -> str:
    if activation in (F.relu, torch.relu) or type(activation) is nn.ReLU:
        return "relu"
    if activation is F.gelu or (type(activation) is nn.GELU and activation.approximate == "none"):
        return "gelu"
    name = getattr(activation, "__name__", str(activation))
    return refuse(NAME, f"{owner} has the activation {name}, which has no name in torch: expected 'relu' or 'gelu'")


def _norm(norm: nn.LayerNorm) -> dict[str, Any]:
    return {"eps": norm.eps, "elementwise_affine": norm.elementwise_affine, "bias": norm.bias is not None}


def _tensor(tensor: Tensor | None) -> dict[str, Any] | None:
    return None if tensor is None else {"shape": list(tensor.shape), "learned": isinstance(tensor, nn.Parameter)}


def _empty(description: Mapping[str, Any] | None) -> Tensor | None:
    if description is None:
        return None
    empty = torch.zeros(description["shape"])
    return nn.Parameter(empty) if description["learned"] else empty
