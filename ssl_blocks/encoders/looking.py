"""Where an encoder looks: attention weights of any adapter, without a change to its model."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.modes import modes_kept


class _Noted(TorchFunctionMode):
    """While active, queries and keys of one call of torch's attention are kept."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.calls = number, 0
        self.found: tuple[Tensor, Tensor, Tensor | None, float | None] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            if self.calls == self.number:
                self.found = named["query"], named["key"], named.get("attn_mask"), named.get("scale")
            self.calls += 1
        return func(*args, **kwargs)


@checked
@torch.no_grad()
def attention_weights(
    encoder: TokenEncoder,
    images: Float[Tensor, "b c *s"],
    *,
    layer: int = -1,
    mask: Bool[Tensor, "_ 1 s s"] | None = None,
) -> Float[Tensor, "b heads s s"]:
    """Compute how much every token attends to every other in one block, in evaluation mode and without gradient.

    Row 0 of an encoder with a class token says where that looks: ``weights[:, :, 0, encoder.num_prefix :]`` (DINO,
    Fig. 1; AttMask). The weights are computed anew from the queries and keys that the block hands to torch.

    Args:
        encoder: any token encoder whose blocks call torch's ``scaled_dot_product_attention``.
        images: ``[B, C, ...]``.
        layer: number of the block; negative ones count from the last.
        mask: who may attend to whom, as for ``encode``.

    Returns:
        ``[B, heads, P+N, P+N]``; rows add up to 1.

    Raises:
        IndexError: if there is no such block.
        RuntimeError: if the block computes attention in another way.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = timm_vit(image_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, class_token=True)
        >>> attention_weights(encoder, torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 2, 17, 17])
    """
    if not -encoder.depth <= layer < encoder.depth:
        raise IndexError(f"layer={layer} must be one of the encoder's {encoder.depth} blocks")
    index = torch.arange(encoder.grid.num_tokens, device=images.device).expand(len(images), -1)
    module = encoder if isinstance(encoder, nn.Module) else encoder.module
    noted = _Noted(layer % encoder.depth)
    with modes_kept(module, training=False), torch.autocast(images.device.type, enabled=False), noted:
        encoder.encode(encoder.embed(images), index, mask)
    if noted.found is None or noted.calls != encoder.depth:
        raise RuntimeError(
            f"{type(encoder.module).__name__} called torch's scaled_dot_product_attention {noted.calls} times in its "
            f"{encoder.depth} blocks: expected once a block (for timm models keep fused attention on)"
        )
    query, key, seen, scale = noted.found
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
    return scores.softmax(-1)
