"""What a training step costs, found out on the meta device: no memory is taken and nothing is computed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ssl_blocks.data import Augmentation, ImageShape
from ssl_blocks.objectives import Objective
from ssl_blocks.parts.attention import explicit_attention, split_empty_rows
from ssl_blocks.values import Views

Precision = Literal["fp32", "bf16", "bf16 on CPU"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "bf16 on CPU")

_IN_16_BITS = {F.linear, F.conv2d, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__}


@dataclass(frozen=True)
class Count:
    """Number of parameters: all, and those that are trained."""

    total: int
    trainable: int


@dataclass(frozen=True)
class Flops:
    """Floating point operations of the matrix products of one image; a multiplication and an addition are two."""

    forward: int
    backward: int


@dataclass(frozen=True)
class States:
    """Bytes that weights and what belongs to them take, whatever the batch."""

    parameters: int
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass: those of each image, and those that a batch of any size takes."""

    per_image: int
    fixed: int

    def of(self, images: int) -> int:
        """Bytes of a batch."""
        return self.per_image * images + self.fixed


def count_parameters(objective: nn.Module) -> dict[str, Count]:
    """Count parameters by part, in the order of the objective's attributes; parts without any are left out.

    Of a reader or a student each part is counted, such as router and decoder, encoder and heads.

    Parameters that several parts share count for the first of them.
    """
    counts: dict[str, Count] = {}
    seen: set[int] = set()
    parts: list[tuple[str, nn.Module]] = []
    for name, part in objective.named_children():
        inner = list(part.named_children()) if name in ("reader", "student") else []
        parts += [*inner, (name, part)]  # what is left of it comes after its parts
    for name, part in [*parts, ("the rest", objective)]:
        own = [p for p in part.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            counts[name] = Count(sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
    return counts


def state_bytes(objective: nn.Module) -> States:
    """Bytes of parameters, gradients and AdamW's two moments and step counts, exactly."""
    parameters = list(objective.parameters())
    trained = [p for p in parameters if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    step = torch.tensor(0.0).element_size()
    return States(
        parameters=sum(p.numel() * p.element_size() for p in parameters),
        gradients=gradients,
        optimizer=2 * gradients + step * len(trained),
    )


def count_flops(objective: Objective, shape: ImageShape, augmentation: Augmentation | None = None) -> Flops:
    """Count the matrix products of a training step on one image, in all views of it.

    Attention counts as products over all pairs of tokens, masked or not; nothing counts twice that a fused kernel
    computes anew in its backward pass.

    Args:
        objective: whose training step.
        shape: of the images.
        augmentation: makes the views for an objective that takes some.
    """
    objective, images = _on_meta(objective, shape, augmentation, 1)
    with FlopCounterMode(display=False) as forward:
        loss = objective(images, objective.draw(images)).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return Flops(forward.get_total_flops(), backward.get_total_flops())


def activation_bytes(
    objective: Objective, shape: ImageShape, precision: Precision, augmentation: Augmentation | None = None
) -> Activations:
    """Count what autograd keeps from the forward to the backward pass, parameters left out.

    Args:
        objective: whose training step.
        shape: of the images.
        precision: ``"fp32"`` and ``"bf16"`` with a fused attention kernel, as on a GPU; ``"bf16 on CPU"`` with
            attention in plain operations, which keeps the weights of all pairs of tokens.
        augmentation: makes the views for an objective that takes some.
    """
    # two batches, and neither of one image: sizes of 1 are broadcast where others are copied
    two, three = (_saved(objective, shape, precision, augmentation, batch) for batch in (2, 3))
    return Activations(per_image=three - two, fixed=two - 2 * (three - two))


def example_images(
    objective: Objective,
    shape: ImageShape,
    augmentation: Augmentation | None,
    *,
    batch: int,
    device: torch.device | str,
) -> Tensor | Views:
    """Zeros in place of a batch, as the objective would get it."""
    if augmentation is None or not objective.takes_views:
        return torch.zeros(batch, *shape, device=device)
    # one image tells all sizes; drawn beside torch's generator, which is not ours to advance
    views = augmentation(torch.zeros(1, *shape), generator=torch.Generator().manual_seed(0))
    if not isinstance(views, Views):
        return torch.zeros(batch, *views.shape[1:], device=device)
    zeros = (torch.zeros(batch, *view.shape[1:], device=device) for view in views.images)
    return Views(tuple(zeros), views.num_global)


def _saved(
    objective: Objective,
    shape: ImageShape,
    precision: Precision,
    augmentation: Augmentation | None,
    batch: int,
) -> int:
    objective, images = _on_meta(objective, shape, augmentation, batch)
    draw = objective.draw(images)
    with kept_for_backward(objective) as kept, _Precision(precision):
        loss = objective(images, draw).loss  # noqa: F841 - alive, so that nothing kept is freed
    return sum(kept.values())


@contextmanager
def kept_for_backward(objective: nn.Module) -> Iterator[dict[int, int]]:
    """Note the bytes of every storage that autograd keeps meanwhile, those of parameters and buffers left out."""
    own = {t.untyped_storage()._cdata for t in [*objective.parameters(), *objective.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor.detach())  # or another storage might get the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _on_meta(
    objective: Objective, shape: ImageShape, augmentation: Augmentation | None, batch: int
) -> tuple[Objective, Tensor | Views]:
    if any(p.device.type != "meta" for p in objective.parameters()):
        objective = copy.deepcopy(objective).to("meta")
    return objective, example_images(objective, shape, augmentation, batch=batch, device="meta")


class _Precision(TorchFunctionMode):
    """Stands in for autocast and for the kernels of attention, neither of which the meta device has."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self.is_16_bit, self.is_fused = precision != "fp32", precision != "bf16 on CPU"

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_attention = func is F.scaled_dot_product_attention
        if self.is_16_bit and (is_attention or func in _IN_16_BITS):
            args, kwargs = tree_map_only(Tensor, _in_16_bits, (args, kwargs))
        if not is_attention:
            return func(*args, **kwargs)
        known = {name: value for name, value in kwargs.items() if name not in ("is_causal", "enable_gqa")}
        return (_fused_attention if self.is_fused else explicit_attention)(*args, **known)


def _in_16_bits(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16) if values.is_floating_point() else values


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """The memory-efficient kernel: what CUDA takes for attention with a mask."""
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            allowed, _ = split_empty_rows(bias)
            bias = torch.zeros_like(allowed, dtype=query.dtype).masked_fill(~allowed, float("-inf"))
        bias = bias.expand(*query.shape[:2], query.shape[2], key.shape[2])
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = attention(query, key, value, bias, True, dropout_p, scale=scale)[0]
    return out
