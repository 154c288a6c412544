"""A check for any token encoder: does it compute what its model computes, and see only what the mask lets it see?"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.encoders import TokenEncoder
from ssl_blocks.modes import modes_kept
from ssl_blocks.testing.encoder_checks import Checks
from ssl_blocks.testing.precise import all_kept
from ssl_blocks.testing.role_case import RoleError, RoleReport, noise


def check_token_encoder(
    encoder: TokenEncoder,
    *,
    native: Callable[[Float[Tensor, "b c *s"]], Float[Tensor, "b s d"]] | None = None,
    has_positions: bool = True,
    compiles: bool = False,
    batch: int = 2,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-4,
) -> RoleReport:
    """Prove that an encoder keeps the promises of ``TokenEncoder``, on which every objective relies.

    Weights are shaken by noise meanwhile, since zeros, ones and small scales at the start hide what is left out;
    weights, buffers, modes, gradients and torch's random state are put back.

    What is checked: the model's own output is reproduced; images and their patches embed alike, patch by patch;
    features are the mean over patch tokens, under a mask too; tokens in another order give the same outputs in that
    order; a subset alone gives what it gives among hidden tokens; under masks that are causal and differ between images
    nothing hidden has a say (by gradient, exactly, and by noise), and all that is seen has one; positions matter and
    are looked up per token; what enters the first block is not mixed yet; weights are saved and loaded strictly;
    gradient checkpointing gives the same gradients.

    What it cannot see: a choice made by the values of the weights that is not made with the shaken ones.

    Args:
        encoder: the encoder; small ones take a second or two.
        native: the model's own normalised output of images ``[B, C, H, W] -> [B, P + N, D]``, prefix first;
            ``None`` asks the encoder's ``native`` if it has one.
        has_positions: ``False`` expects that positions do not matter.
        compiles: also compile ``encode`` in one graph (``backend="eager"``), which is slow.
        batch: images, at least 2.
        generator: source of randomness; ``None`` uses torch's default.
        tolerance: largest difference relative to the largest value, where rounding may differ.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, depth=2, embed_dim=16, num_heads=2)
        >>> report = check_token_encoder(encoder)
        >>> report.passed[:4], dict(report.not_applicable)
        (('members', 'native output', 'embedding', 'features'), {'compilation': 'not asked for'})
    """
    if batch < 2:
        raise ValueError(f"batch={batch} must be at least 2, so that images can be told from each other")
    _check_members(encoder)
    model = encoder if isinstance(encoder, nn.Module) else encoder.module
    weight = next(model.parameters())
    size = (n * p for n, p in zip(encoder.grid.sizes, encoder.patch, strict=True))
    images = noise(weight.device, batch, encoder.channels, *size, dtype=weight.dtype)
    native = native or getattr(encoder, "native", None)
    case = Checks(encoder, model, native, images, generator, tolerance, has_positions, compiles)
    with (
        modes_kept(model, training=False),
        torch.autocast(weight.device.type, enabled=False),
        all_kept(model, shaken=True),
    ):
        report = case.run()
    return RoleReport(("members", *report.passed), report.not_applicable)


def _check_members(encoder: Any) -> None:
    sizes = ("dim", "depth", "grid", "patch", "channels", "num_prefix")
    members = ("module", "norm", *sizes, "embed", "encode", "features")
    missing = [name for name in members if not hasattr(encoder, name)]
    if missing:
        raise RoleError(f"{type(encoder).__name__} lacks {', '.join(missing)}")
    if not isinstance(encoder.module, nn.Module):
        raise RoleError(f"encoder.module is a {type(encoder.module).__name__}, expected the model (nn.Module)")
