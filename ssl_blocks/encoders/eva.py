"""Adapter for timm's ``Eva`` family: EVA-02, DINOv3, rope-vit, Perception Encoder, Sapiens2."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from ssl_blocks.bounds import Channels
from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import Size
from ssl_blocks.encoders.timm_building import (
    build_model,
    check_name,
    class_of,
    create_pretrained,
    placed,
    prepared,
    rebuilding,
)
from ssl_blocks.encoders.timm_models import TimmAdapter, require_fit
from ssl_blocks.modes import modes_kept


@checked
class TimmEva(TimmAdapter[Eva]):
    """See a timm ``Eva`` as a token encoder: absolute positions, rotary ones (axial or mixed), or both.

    Rotations are looked up per token like table rows, and prefix tokens are not rotated. Random augmentation of
    coordinates (``rope_rescale_coords`` and the like, which DINOv3 and Sapiens2 train with) is left out: the output
    is the same for the same input in training mode too.

    Args:
        module: the model. Build it with ``num_classes=0, use_fc_norm=False, use_post_transformer_norm=True``.
        model_args: arguments that ``timm.create_model`` needs to build it again, noted in exports.

    Raises:
        TypeError: if it is no ``Eva``, or its blocks take no mask.
        ValueError: if it drops patches at random, its final norm sits behind the pooling, or its mixed rotary
            positions are augmented at random.

    Examples:
        >>> size = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
        >>> encoder = TimmEva(Eva(img_size=32, patch_size=8, use_rot_pos_emb=True, use_fc_norm=False, **size))
        >>> encoder.num_prefix, str(encoder.grid), encoder.features(torch.zeros(1, 3, 32, 32)).shape
        (1, '4x4', torch.Size([1, 32]))
    """

    wraps = Eva
    rope_table: Tensor | None

    def __init__(self, module: nn.Module, *, model_args: Mapping[str, Any] | None = None) -> None:
        eva = _refuse_unfit(module)
        super().__init__(eva, model_args=model_args)
        fixed = eva.rope is not None and not eva.rope_mixed
        with modes_kept(eva, training=False), torch.no_grad():
            table = self._rotations().clone() if fixed else None
        self.register_buffer("rope_table", table, persistent=False)

    def _rotations(self) -> Tensor:
        """Sines and cosines in raster order, ``[N, 2d]``, or of every block and head ``[depth, H, N, 2d]``."""
        rope: Any = self.module.rope
        known = getattr(rope, "feat_shape", None) is not None
        table: Tensor = rope.get_embed() if known else rope.get_embed(shape=(self.grid.height, self.grid.width))
        return table

    def _blocks(self, index: Tensor | None) -> Iterable[Callable[..., Tensor]]:
        blocks: nn.ModuleList = self.module.blocks
        if index is None or self.module.rope is None:
            return blocks
        if self.rope_table is None:  # frequencies are learned, per block and head
            rotations = self._rotations()[:, :, index].movedim(2, 1)  # [depth, B, H, n, 2d]
            return [partial(block, rope=rope) for block, rope in zip(blocks, rotations, strict=True)]
        rope = self.rope_table.to(index.device)[index].unsqueeze(1)  # [B, 1, n, 2d]: heads need an axis of their own
        return [partial(block, rope=rope) for block in blocks]


def _refuse_unfit(module: nn.Module) -> Eva:
    name = type(module).__name__
    if not isinstance(module, Eva):
        raise TypeError(f"{name} is not a timm Eva such as eva02_small_patch14_224")
    require_fit(module)
    if module.rope_mixed and getattr(module.rope, "aug_active", False):
        raise ValueError(
            "mixed rotary positions are augmented at random in training: build the model without rope_shift_coords, "
            "rope_jitter_coords and rope_rescale_coords, since an objective draws all that is random"
        )
    return module


@checked
def is_eva(name: str) -> bool:
    """Whether timm builds an ``Eva`` by this name, which may have a tag, or be that of a folder or a repository.

    Raises:
        ValueError: if the name is unknown, or the model cannot be read.
        FileNotFoundError: if the folder holds no model.

    Examples:
        >>> is_eva("eva02_tiny_patch14_224"), is_eva("vit_tiny_patch16_224")
        (True, False)
    """
    name = placed(name)
    check_name(name)
    return issubclass(class_of(name), Eva)


@checked
def timm_eva(
    name: str = "vit_small_patch16_rope_224",
    *,
    image_size: Size,
    patch_size: Size | None = None,
    channels: Channels = 3,
    pretrained: bool = False,
    **model_args: Any,
) -> TimmEva:
    """Build a timm ``Eva`` for pretraining, and wrap it.

    It has no head and pools by averaging the normalised patch tokens, so that calling the exported model returns
    the same features as the adapter. Name, arguments, pretrained weights and errors are as for `timm_vit`: any name
    that timm builds as an ``Eva``, all weights but the head's.

    Examples:
        >>> encoder = timm_eva("eva02_tiny_patch14_224", image_size=32, patch_size=4, depth=2)
        >>> encoder.num_prefix, encoder.dim, str(encoder.grid)
        (1, 192, '8x8')
    """
    name = placed(name)
    saved, arguments = prepared(name, Eva, _refuse_unfit, image_size, patch_size, channels, pretrained, model_args)
    if pretrained:
        arguments |= model_args
        norms = {"use_fc_norm": False, "use_post_transformer_norm": not isinstance(saved.norm, nn.Identity)}
        return TimmEva(create_pretrained(name, arguments), model_args=rebuilding(name, norms | arguments))
    arguments |= {"use_fc_norm": False, "use_post_transformer_norm": True, **model_args}
    return TimmEva(build_model(name, arguments, model_args, _refuse_unfit), model_args=arguments)
