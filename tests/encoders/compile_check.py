"""Compile families in one graph, in bfloat16: one of each kind of block, of which a second one shows nothing new.

Run by tests/compile_check.py, in a process of its own: shape checks on every call are no part of what is compiled.
"""

import torch

from ssl_blocks.encoders import TimmViT
from ssl_blocks.testing import RoleError, check_token_encoder
from tests.encoders.families import FAMILIES, causal, family, images_for, raster


def difference(name, *, checkpointing):
    """Largest difference between compiled and eager gradients of the pixels, relative to the largest."""
    torch._dynamo.reset_code_caches()
    encoder = family(name, depth=1)
    encoder.set_grad_checkpointing(checkpointing)
    index, mask, found = raster(encoder), causal(encoder), []

    def run(images):
        return encoder.encode(encoder.embed(images), index, mask).final

    for forward in (run, torch.compile(run, fullgraph=True, backend="eager")):
        images = images_for(encoder).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            final = forward(images)
        (final.float() * torch.linspace(-1, 1, final.shape[-1])).sum().backward()
        found.append(images.grad)
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


class Breaking(TimmViT):
    """Wrong: looks at a value in the middle."""

    def encode(self, tokens, index, mask=None):
        return super().encode(tokens * (1.0 if tokens.detach().mean().item() > -1e9 else 0.0), index, mask)


def complaint():
    torch._dynamo.reset_code_caches()
    try:
        check_token_encoder(Breaking(FAMILIES["timm ViT"](depth=1).module), compiles=True)
    except RoleError as error:
        return str(error)
    return ""


PLAIN = (
    *("timm DINOv2 with registers", "timm EVA-02", "timm rope-vit, mixed", "torchvision ViT"),
    *("transformers ViT", "transformers DINOv2", "transformers DINOv3"),
    *("nn.TransformerEncoder, norm last", "GridTransformer, volumes"),
)


def encoders():
    """How far is compiled from eager, and is what does not compile found?"""
    return {
        "plain": {name: difference(name, checkpointing=False) for name in PLAIN},
        "recomputed": difference("torchvision ViT", checkpointing=True),
        "breaking": complaint(),
    }
