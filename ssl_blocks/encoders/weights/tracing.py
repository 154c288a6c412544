"""An encoder as a program that needs neither this library nor the model's code."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ssl_blocks.encoders import FeatureEncoder
from ssl_blocks.modes import modes_kept


class _Features(nn.Module):
    def __init__(self, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)


def trace_features(encoder: FeatureEncoder, images: Float[Tensor, "b c h w"]) -> ExportedProgram:
    """Trace an encoder's features with ``torch.export``, for any number of images of one size.

    The program holds the weights, runs in evaluation mode, and is saved by ``torch.export.save``.

    Args:
        encoder: in whatever mode; it is left in it.
        images: ``[B, C, H, W]`` with ``B`` of at least 2; only their shape, dtype and device matter.

    Returns:
        The program: called as ``program.module()(images)``, it returns ``[B, D]``.

    Raises:
        ValueError: if there are fewer than two images, from which no free batch size can be seen.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=8, num_heads=2)
        >>> program = trace_features(encoder, torch.zeros(2, 3, 8, 8))
        >>> program.module()(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 8])
    """
    if len(images) < 2:
        raise ValueError(f"images must be at least 2 for a program of any batch size, got {len(images)}")
    model = _Features(encoder)
    with modes_kept(model, training=False), torch.no_grad():
        return torch.export.export(model.eval(), (images,), dynamic_shapes=({0: Dim("batch")},))
