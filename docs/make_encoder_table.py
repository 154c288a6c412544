"""Write the table of docs/encoders.md: run as ``python -m docs.make_encoder_table``; ``--check`` only compares.

Every family is built tiny, checked by ``check_token_encoder``, and gets a row of what passed.
"""

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

import ssl_blocks as sb
from ssl_blocks.encoders import GridTransformer, TokenEncoder, TorchEncoder, wrap
from ssl_blocks.testing import RoleReport, check_token_encoder

PAGE = Path(__file__).parent / "encoders.md"
START, END = "<!-- table families -->", "<!-- end families -->"
CHECKS = (
    "native output",
    "embedding",
    "features",
    "masks",
    "order",
    "subset",
    "positions",
    "input",
    "saving",
    "checkpointing",
    "compilation",
)


def of_timm(name: str, **options: Any) -> Callable[..., TokenEncoder]:
    """A model of timm, tiny."""
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "num_classes": 0}
    return lambda depth=2: wrap(timm.create_model(name, depth=depth, **size, **options))


def of_transformers(name: str, **options: Any) -> Callable[..., TokenEncoder]:
    """A model of transformers, tiny."""

    def build(depth: int = 2) -> TokenEncoder:
        import transformers

        size = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2}
        size |= {"image_size": 16, "patch_size": 4}
        config = getattr(transformers, f"{name}Config")(**size, **options)
        return wrap(getattr(transformers, f"{name}Model")(config))

    return build


def of_torchvision(depth: int = 2) -> TokenEncoder:
    """A model of torchvision, tiny."""
    size = {"num_layers": depth, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return wrap(VisionTransformer(image_size=16, patch_size=4, **size))


def of_torch(*, norm_first: bool, batch_first: bool = True, num_prefix: int = 0) -> Callable[..., TokenEncoder]:
    """A stem and layers of torch, tiny."""

    def build(depth: int = 2) -> TokenEncoder:
        layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=norm_first, batch_first=batch_first)
        norm = nn.LayerNorm(16) if norm_first else None
        return TorchEncoder(
            nn.TransformerEncoder(layer, depth, norm=norm, enable_nested_tensor=False),
            stem=nn.Conv2d(3, 16, kernel_size=4, stride=4),
            grid=sb.Grid(4, 4),
            positions=nn.Parameter(0.02 * torch.randn(16, 16)),
            prefix=nn.Parameter(0.02 * torch.randn(1, num_prefix, 16)) if num_prefix else None,
        )

    return build


def of_grid(**options: Any) -> Callable[..., TokenEncoder]:
    """A transformer over a grid of other axes than two, tiny."""
    return lambda depth=2: wrap(GridTransformer(depth=depth, num_heads=2, **options))


FINAL_NORM = {"use_fc_norm": False, "use_post_transformer_norm": True}
FAMILIES: dict[str, Callable[..., TokenEncoder]] = {
    "timm ViT": of_timm("vit_tiny_patch16_224"),
    "timm DeiT, distilled": of_timm("deit_tiny_distilled_patch16_224"),
    "timm DINOv2 with registers": of_timm("vit_small_patch14_reg4_dinov2"),
    "timm CLIP": of_timm("vit_base_patch32_clip_224"),
    "timm SigLIP": of_timm("vit_base_patch16_siglip_224"),
    "timm EVA-02": of_timm("eva02_tiny_patch14_224", **FINAL_NORM),
    "timm DINOv3": of_timm("vit_small_patch16_dinov3"),
    "timm rope-vit, axial": of_timm("vit_small_patch16_rope_224"),
    "timm rope-vit, mixed": of_timm("vit_small_patch16_rope_mixed_224"),
    "torchvision ViT": of_torchvision,
    "transformers ViT": of_transformers("ViT", intermediate_size=32),
    "transformers DINOv2": of_transformers("Dinov2", mlp_ratio=2),
    "transformers DINOv2 with registers": of_transformers("Dinov2WithRegisters", mlp_ratio=2),
    "transformers DINOv3": of_transformers("DINOv3ViT", intermediate_size=32, num_register_tokens=2),
    "nn.TransformerEncoder, norm first": of_torch(norm_first=True),
    "nn.TransformerEncoder, norm last": of_torch(norm_first=False),
    "GridTransformer, signals": of_grid(image_size=(64,), patch_size=4, dim=16, positions="learned"),
    "GridTransformer, volumes": of_grid(image_size=(4, 8, 8), patch_size=2, channels=1, dim=24, num_prefix=1),
}


def checked(name: str, *, compiles: bool = False) -> RoleReport:
    """Build a family and check it."""
    torch.manual_seed(0)
    torch.compiler.reset()
    return check_token_encoder(FAMILIES[name](), compiles=compiles, generator=torch.Generator().manual_seed(0))


def row(name: str, passed: Collection[str]) -> list[str]:
    """Tell what passed."""
    encoder = FAMILIES[name]()
    marks = ["yes" if check in passed else "–" for check in CHECKS]
    return [name, f"`{type(encoder).__name__}`", str(encoder.num_prefix), *marks]


def updated(text: str) -> str:
    """The page with its table made anew."""
    head = ["family", "adapter", "prefix tokens", *CHECKS]
    rows = [row(name, checked(name, compiles=True).passed) for name in FAMILIES]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    page = PAGE.read_text()
    made = updated(page)
    if "--check" not in sys.argv:
        PAGE.write_text(made)
    elif made != page:
        sys.exit("docs/encoders.md is not what python -m docs.make_encoder_table writes")
