"""Adapter for an ``nn.TransformerEncoder`` behind a patch stem."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import DescribedAdapter, Description, Size, grid_for, refuse, require_same, resampled
from ssl_blocks.encoders.tokens import TokenAdapter, require_plain_attention, require_plain_stem, self_attention
from ssl_blocks.grid import Grid
from ssl_blocks.modes import without_weights


@checked
class TorchEncoder(DescribedAdapter[nn.Module], TokenAdapter[nn.Module]):
    """See a patch stem and an ``nn.TransformerEncoder`` as a token encoder, norm first or last.

    The layers take inverted masks, one per head, so the adapter computes them from their own parts. ``forward`` of
    a layer is not called: hooks on a layer, FSDP's among them, do not fire.

    Args:
        encoder: the layers; ``batch_first`` may be either.
        stem: convolution whose kernel is its stride: the patch.
        grid: tokens of an image.
        positions: ``[N, D]`` or ``[1, N, D]``, or with rows for the prefix first ``[1, P + N, D]``; a parameter is
            learned. ``None`` means no positions.
        prefix: class or register tokens ``[1, P, D]``.
        module: your own model, of which all of these are parts. ``None`` gathers them in a new one, with the names
            ``stem``, ``encoder``, ``positions`` and ``prefix``.

    Raises:
        TypeError: if the stem mixes patches, or the layers are not ``nn.TransformerEncoderLayer``.
        ValueError: if sizes contradict each other, there are no layers, or a part is not in ``module``.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        >>> layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)
        >>> stem = nn.Conv2d(3, 16, kernel_size=8, stride=8)
        >>> table = nn.Parameter(0.02 * torch.randn(16, 16))
        >>> encoder = TorchEncoder(layers, stem=stem, grid=Grid(4, 4), positions=table)
        >>> encoder.patch, sorted(encoder.module.state_dict())[-3:]
        ((8, 8), ['positions', 'stem.bias', 'stem.weight'])
    """

    architecture = "TorchEncoder"

    def __init__(
        self,
        encoder: nn.TransformerEncoder,
        *,
        stem: nn.Conv2d,
        grid: Grid,
        positions: Tensor | None = None,
        prefix: Tensor | None = None,
        module: nn.Module | None = None,
    ) -> None:
        require_plain_stem("TorchEncoder", stem)
        num_prefix = 0 if prefix is None else prefix.shape[-2]
        _require_fitting_parts(encoder, stem.out_channels, grid, positions, prefix)
        if module is None:
            module = _gather(encoder, stem, positions, prefix)
        parts = {"stem": stem, "encoder": encoder, "positions": positions, "prefix": prefix}
        self._paths = {name: _path(module, name, part) for name, part in parts.items() if part is not None}
        super().__init__(module, grid=grid, dim=stem.out_channels, depth=len(encoder.layers), num_prefix=num_prefix)
        self._no_norm = nn.Identity()

    @property
    def norm(self) -> nn.Module:
        """The final norm; the identity where the layers have none."""
        norm: nn.Module | None = self._encoder().norm
        return self._no_norm if norm is None else norm

    def native(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """What torch's own layers compute of the placed tokens."""
        index = torch.arange(self.grid.num_tokens, device=images.device).expand(len(images), -1)
        x, layers = self._place(self.embed(images), index), self._encoder()
        batch_first = layers.layers[0].self_attn.batch_first
        output: Tensor = layers(x) if batch_first else layers(x.transpose(0, 1)).transpose(0, 1)
        return output

    @classmethod
    def of(cls, module: nn.Module) -> None:
        """Nothing: layers alone are no encoder."""
        if isinstance(module, nn.TransformerEncoder):
            raise TypeError("an nn.TransformerEncoder has no patch stem: use TorchEncoder(encoder, stem=..., grid=...)")

    def describe(self) -> Description:
        """The sizes of its parts, and their weights under names of our own: see ``gathered``."""
        module: Any = self.gathered()
        stem, layers, norm = module.stem, module.encoder.layers, module.encoder.norm
        arguments = {
            "grid": [self.grid.height, self.grid.width],
            "patch": list(self.patch),
            "channels": self.channels,
            "stem_bias": stem.bias is not None,
            "depth": self.depth,
            "layer": _describe_layer(layers),
            "norm": None if norm is None else _describe_norm(norm),
            "positions": _describe_tensor(getattr(module, "positions", None)),
            "prefix": _describe_tensor(getattr(module, "prefix", None)),
        }
        with without_weights():
            again = self.rebuild(arguments)
        # the stem is known to be plain, however its padding of nothing is spelt; activations, too, functions or modules
        activations = tuple(f"encoder.layers.{number}.activation" for number in range(self.depth))
        require_same("TorchEncoder", module, again.module, passed_over=("stem", *activations))
        return Description(arguments, module.state_dict())

    @classmethod
    def rebuild(cls, model_args: Mapping[str, Any]) -> "TorchEncoder":
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
        return cls(layers, stem=stem, grid=Grid(*model_args["grid"]), positions=positions, prefix=prefix)

    @classmethod
    def resized(cls, stored: Description, image_size: Size) -> Description:
        """For another input size: another grid, and positions for it."""
        old, new = Grid(*stored.model_args["grid"]), grid_for(image_size, tuple(stored.model_args["patch"]))
        arguments, state = {**stored.model_args, "grid": [new.height, new.width]}, dict(stored.state)
        if arguments["positions"] is not None:
            state["positions"] = resampled(state["positions"], old=old, new=new)
            arguments["positions"] = {**arguments["positions"], "shape": list(state["positions"].shape)}
        return Description(arguments, state)

    def _encoder(self) -> Any:
        return self.module.get_submodule(self._paths["encoder"])

    def _layers(self) -> Any:
        return self._encoder().layers

    def _stem(self) -> Any:
        return self.module.get_submodule(self._paths["stem"])

    def gathered(self) -> nn.Module:
        """The parts in a module of their own, under the names ``stem``, ``encoder``, ``positions`` and ``prefix``."""
        return _gather(self._encoder(), self._stem(), self._given("positions"), self._given("prefix"))

    def _given(self, name: str) -> Tensor | None:
        """A tensor in the shape that it was given in."""
        if name not in self._paths:
            return None
        parent, _, leaf = self._paths[name].rpartition(".")
        tensor: Tensor = getattr(self.module.get_submodule(parent), leaf)
        return tensor

    def _tensor(self, name: str) -> Tensor | None:
        """``[1, k, D]``."""
        tensor = self._given(name)
        return None if tensor is None else tensor.reshape(1, -1, tensor.shape[-1])

    def _prefix(self) -> list[Tensor]:
        prefix = self._tensor("prefix")
        return [] if prefix is None else [prefix]

    def _positions(self) -> tuple[Tensor | None, int]:
        table = self._tensor("positions")
        return table, 0 if table is None else table.shape[1] - self.grid.num_tokens

    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        return [partial(_run, layer) for layer in self._layers()]

    def _spared(self) -> set[str]:
        return {self._paths[name] for name in ("positions", "prefix") if name in self._paths}


def _run(
    layer: nn.TransformerEncoderLayer, x: Float[Tensor, "b s d"], attn_mask: Shaped[Tensor, "_ 1 s s"] | None
) -> Float[Tensor, "b s d"]:
    if layer.norm_first:
        x = x + layer.dropout1(self_attention(layer.self_attn, layer.norm1(x), attn_mask))
        return x + _feed_forward(layer, layer.norm2(x))
    x = layer.norm1(x + layer.dropout1(self_attention(layer.self_attn, x, attn_mask)))
    out: Tensor = layer.norm2(x + _feed_forward(layer, x))
    return out


def _feed_forward(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    out: Tensor = layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x)))))
    return out


def _gather(encoder: nn.Module, stem: nn.Module, positions: Tensor | None, prefix: Tensor | None) -> nn.Module:
    module = nn.Module()
    module.stem, module.encoder = stem, encoder
    for name, tensor in (("positions", positions), ("prefix", prefix)):
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        elif tensor is not None:
            module.register_buffer(name, tensor)
    return module


def _path(module: nn.Module, name: str, part: Any) -> str:
    """Where a part lies in a model: kept as a name, so that copies of the adapter find their own."""
    inside: list[tuple[str, Any]] = [*module.named_modules(), *module.named_parameters(), *module.named_buffers()]
    path = next((path for path, found in inside if found is part), None)
    if path is None:
        raise ValueError(f"{name} is no part of module={type(module).__name__}, so its weights would not be exported")
    return path


def _require_fitting_parts(
    encoder: nn.TransformerEncoder, dim: int, grid: Grid, positions: Tensor | None, prefix: Tensor | None
) -> None:
    if not len(encoder.layers):
        raise ValueError("encoder has no layers")
    for number, layer in enumerate(encoder.layers):
        if type(layer) is not nn.TransformerEncoderLayer:
            raise TypeError(
                f"layer {number} is a {type(layer).__name__}, expected nn.TransformerEncoderLayer, whose parts the "
                "adapter runs"
            )
        require_plain_attention(f"layer {number}", layer.self_attn)
        if layer.self_attn.embed_dim != dim:
            raise ValueError(
                f"layer {number} has width {layer.self_attn.embed_dim}, but stem.out_channels={dim}: all must be equal"
            )
    normalized = tuple(getattr(encoder.norm, "normalized_shape", (dim,)))
    if normalized != (dim,):
        raise ValueError(f"encoder.norm normalises {normalized}, but stem.out_channels={dim}")
    count = 0 if prefix is None else prefix.shape[-2]
    if prefix is not None and tuple(prefix.shape) != (1, count, dim):
        raise ValueError(f"prefix of shape {tuple(prefix.shape)} must be [1, P, {dim}]")
    if positions is not None:
        rows = positions.numel() // positions.shape[-1]
        if positions.shape[-1] != dim or rows not in (grid.num_tokens, grid.num_tokens + count):
            raise ValueError(
                f"positions of shape {tuple(positions.shape)} must have a row of {dim} for each of the grid's "
                f"{grid.num_tokens} tokens" + (f", or for the {count} prefix tokens and these" if count else "")
            )


def _describe_layer(layers: nn.ModuleList) -> dict[str, Any]:
    """The arguments of the first; where others differ, it is said later what would be built again."""
    kinds = [_activation(f"layer {number}", layer.activation) for number, layer in enumerate(layers)]
    if len(set(kinds)) > 1:
        refuse("TorchEncoder", f"its layers have the activations {', '.join(kinds)}: all must be equal")
    layer: Any = layers[0]
    return {
        "d_model": layer.self_attn.embed_dim,
        "nhead": layer.self_attn.num_heads,
        "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.dropout.p,
        "activation": kinds[0],
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
    return refuse(
        "TorchEncoder", f"{owner} has the activation {name}, which has no name in torch: expected 'relu' or 'gelu'"
    )


def _describe_norm(norm: Any) -> dict[str, Any]:
    affine = getattr(norm, "elementwise_affine", True)
    return {"eps": norm.eps, "elementwise_affine": affine, "bias": getattr(norm, "bias", None) is not None}


def _describe_tensor(tensor: Tensor | None) -> dict[str, Any] | None:
    return None if tensor is None else {"shape": list(tensor.shape), "learned": isinstance(tensor, nn.Parameter)}


def _empty(description: Mapping[str, Any] | None) -> Tensor | None:
    if description is None:
        return None
    empty = torch.zeros(description["shape"])
    return nn.Parameter(empty) if description["learned"] else empty
