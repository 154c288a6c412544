"""What a training step costs: random choices are made for real, all else is passed through without being computed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ssl_blocks.data import Augmentation, ImageShape
from ssl_blocks.objectives import Objective
from ssl_blocks.objectives.life_cycle import find_parts
from ssl_blocks.parts.attention import explicit_attention, split_empty_rows
from ssl_blocks.values import Views

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "bf16 on CPU"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "bf16 on CPU")

_IN_16_BITS = {F.linear, F.conv2d, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__}


class Count(NamedTuple):
    """Number of parameters: all, and those that are trained."""

    total: int
    trainable: int


class Flops(NamedTuple):
    """Floating point operations of the matrix products of one image; a multiplication and an addition are two."""

    forward: int
    backward: int


class States(NamedTuple):
    """Bytes that weights and what belongs to them take, whatever the batch."""

    parameters: int
    gradients: int
    optimizer: int


class Activations(NamedTuple):
    """Bytes kept for the backward pass: those of each image, and those that a batch of any size takes."""

    per_image: int
    fixed: int

    def of(self, images: int) -> int:
        """Bytes of a batch."""
        return self.per_image * images + self.fixed


def count_parameters(objective: nn.Module) -> dict[str, Count]:
    """Count parameters by part, in the order of the objective's attributes; parts without any are left out.

    Of a reader or a student each part is counted, such as router and decoder, encoder and heads. Parameters that
    several parts share count for the first of them.
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
    computes anew in its backward pass. ``augmentation`` makes the views for an objective that takes some.
    """
    images = 2  # a batch norm takes no single one

    def count(step: _Step) -> Flops:
        with FlopCounterMode(display=False) as forward, _Kernels(is_16_bit=False, attention=explicit_attention):
            loss = step.objective(step.images, step.draw).loss
        trained = [p for p in step.objective.parameters() if p.requires_grad]
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(loss, trained, allow_unused=True)
        return Flops(forward.get_total_flops() // images, backward.get_total_flops() // images)

    return _rehearse(count, objective, shape, augmentation, images)


def activation_bytes(
    objective: Objective, shape: ImageShape, precision: Precision, augmentation: Augmentation | None = None
) -> Activations:
    """Count what autograd keeps from the forward to the backward pass, parameters left out.

    ``"fp32"`` and ``"bf16"`` are with a fused attention kernel, as on a GPU; ``"bf16 on CPU"`` with attention in plain
    operations, which keeps the weights of all pairs of tokens.
    """

    def count(step: _Step) -> int:
        fused = F.scaled_dot_product_attention if step.is_real else _fused_attention  # CPU's stands for the GPU's
        attention = explicit_attention if precision == "bf16 on CPU" else fused
        kernels = _Kernels(is_16_bit=precision != "fp32", attention=attention)
        with kept_for_backward(step.objective) as kept, kernels:
            loss = step.objective(step.images, step.draw).loss  # noqa: F841 - alive, so that nothing kept is freed
        return sum(kept.values())

    # two batches, and neither of one image: sizes of 1 are broadcast where others are copied
    two, three = (_rehearse(count, objective, shape, augmentation, batch) for batch in (2, 3))
    return Activations(per_image=three - two, fixed=two - 2 * (three - two))


def example_images(
    objective: Objective, shape: ImageShape, augmentation: Augmentation | None, *, batch: int
) -> Tensor | Views:
    """Noise in place of a batch, as the objective would get it."""
    generator = torch.Generator().manual_seed(0)  # beside torch's own, which is not ours to advance
    images = torch.randn(batch, *shape, generator=generator)
    if augmentation is None or not objective.takes_views:
        return images
    return augmentation(images, generator=generator)


class _Step(NamedTuple):
    """A training step up to its draw."""

    objective: Objective
    images: Tensor | Views
    draw: Any
    is_real: bool


def _rehearse(
    count: Callable[[_Step], T], objective: Objective, shape: ImageShape, augmentation: Augmentation | None, batch: int
) -> T:
    """Count something of a step on a few images, in the cheapest way in which it runs.

    The draw is made for real, from noise for images and from the weights as they are. The pass behind it has shapes
    alone: first on the meta device; where code asks for the device that it is on, in the way of ``torch.compile``; and
    where it looks at values, for real.
    """
    images = example_images(objective, shape, augmentation, batch=batch)
    with torch.no_grad():
        draw = objective.draw(images, generator=torch.Generator().manual_seed(0))
    traced = FakeTensorMode(allow_non_fake_inputs=True)
    ways: list[tuple[AbstractContextManager[Any], Any]] = [
        (_OnMeta(), "meta"),  # type: ignore[no-untyped-call]
        (traced, "cpu"),
    ]
    for mode, device in ways:
        try:
            with mode:
                shown = _empty(images) if device == "meta" else images
                return count(_Step(_without_values(objective, device), shown, draw, is_real=False))
        except Exception:  # whatever it is, the next way has no such trouble, or says what is wrong
            continue
    with torch.random.fork_rng(devices=[]):
        return count(_Step(copy.deepcopy(objective), images, draw, is_real=True))


def _empty(images: Tensor | Views) -> Tensor | Views:
    if isinstance(images, Tensor):
        return images.to("meta")
    return Views(tuple(view.to("meta") for view in images.images), images.num_global)


def _without_values(objective: Objective, device: str) -> Objective:
    """A copy whose tensors have no values, those in plain parts included."""
    known: dict[int, Any] = {}
    for part in find_parts(objective):
        own = vars(part)
        for value in [x for kept in (own, own.get("_parameters"), own.get("_buffers")) for x in (kept or {}).values()]:
            if isinstance(value, Tensor) and id(value) not in known:
                empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
                is_parameter = isinstance(value, nn.Parameter)
                known[id(value)] = nn.Parameter(empty, value.requires_grad) if is_parameter else empty
    return copy.deepcopy(objective, known)


class _OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Let every operation have shapes alone: what comes from elsewhere, such as a draw, is taken for meta."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_elsewhere([*args, *kwargs.values()]):
            args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


def _is_elsewhere(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_elsewhere, value))
    return isinstance(value, Tensor) and not value.is_meta


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


class _Kernels(TorchFunctionMode):
    """Stands in for autocast and for the kernels of attention, neither of which the meta device has."""

    def __init__(self, *, is_16_bit: bool, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.is_16_bit, self.attention = is_16_bit, attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_attention = func is F.scaled_dot_product_attention
        if self.is_16_bit and (is_attention or func in _IN_16_BITS):
            args, kwargs = tree_map_only(
                Tensor, lambda x: x.to(torch.bfloat16) if x.is_floating_point() else x, (args, kwargs)
            )
        if not is_attention:
            return func(*args, **kwargs)
        known = {name: value for name, value in kwargs.items() if name not in ("is_causal", "enable_gqa")}
        return self.attention(*args, **known)


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
