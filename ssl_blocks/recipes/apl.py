"""APL: the patch puzzle.

Paper     APL, the patch puzzle: self-supervision by finding out where each patch of an image lies
Idea      Cut the image into a grid of patches, and take a frame off each, so that neighbours share no edge. Give all of
          them to a transformer that has no positions. A classifier on every token says at which place of the grid the
          patch was. Some patches are blanked out; they can only be guessed, and do not count.
Commands  ssl-blocks apl --preset apl_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          ssl-blocks apl --preset apl_stl10         the original's size
          ssl-blocks apl --help                     every option
Results   docs/results.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

import ssl_blocks as sb
from ssl_blocks.bounds import Depth, Heads, Times, Whole, Width
from ssl_blocks.engine import OptimizerConfig, StrictModel, section
from ssl_blocks.engine.settings import Schedules, values_of
from ssl_blocks.pretrain import Recipe, RunConfig
from ssl_blocks.pretrain.encoders import WITHOUT_POSITIONS, NamedEncoder


class OriginalEncoder(StrictModel):
    """The original's transformer: a token is the patch itself, so the values of a patch are the width."""

    kind: Literal["original"] = "original"
    depth: Depth = Field(4, description="number of blocks")
    heads: Heads = Field(16, description="attention heads; they must divide the values of a patch")
    mlp_ratio: Times = Field(3, description="hidden width of the MLP in units of the width")
    dropout: float = Field(0.15, ge=0, lt=1, description="share of values dropped in the blocks")

    def build(self, tokenizer: sb.PatchTokenizer) -> sb.encoders.PostNormTransformer:
        """Build the encoder of these patches."""
        from ssl_blocks.parts.tokenize import pair  # not above: --help would wait for torch

        return sb.encoders.PostNormTransformer(
            grid=(tokenizer.grid.height, tokenizer.grid.width),
            patch=pair(tokenizer.patch),
            channels=tokenizer.channels,
            num_heads=self.heads,
            **values_of(self, "depth", "mlp_ratio", "dropout"),
        )


class ViTEncoder(NamedEncoder):
    """A vision transformer of timm without positions; grid and crop decide its patches."""

    kind: Literal["vit"] = "vit"
    name: str = Field("vit_tiny_patch16_224", description="timm model that gives all sizes not set here")
    width: Width | None = Field(None, description="token width; default: the model's")
    depth: Depth | None = Field(None, description="number of blocks; default: the model's")
    heads: Heads | None = Field(None, description="attention heads; default: the model's")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of values dropped in the blocks")

    def build(self, tokenizer: sb.PatchTokenizer) -> sb.encoders.TimmViT:
        """Build the encoder of these patches, as they are left by the crop."""
        from ssl_blocks.parts.tokenize import pair  # not above: --help would wait for torch

        if sb.encoders.is_eva(self.name):
            raise ValueError(f"name={self.name!r} has rotary positions, which would give the places away: take a ViT")
        grid, patch = tokenizer.grid, pair(tokenizer.patch)
        return sb.encoders.timm_vit(
            self.name,
            image_size=(grid.height * patch[0], grid.width * patch[1]),
            patch_size=patch,
            channels=tokenizer.channels,
            # of weights with positions the objective says why they do not fit
            positions=None if self.loads else "none",
            **self.for_timm(),
        )


EncoderChoice = Annotated[OriginalEncoder | ViTEncoder, Field(discriminator="kind")]


class APLOptimizer(OptimizerConfig):
    """AdamW, with the learning rate of APL's code: once an epoch, a linear warm-up and a cosine that act together."""

    schedule: Schedules = "apl"
    warmup_start: float = Field(0.5, ge=0, le=1, description="share of the peak at which the warm-up begins")


class APLConfig(RunConfig):
    """Everything an APL run depends on."""

    # in place of the other recipes' encoder: the grid decides the patch, and there are no positions to choose
    encoder: EncoderChoice = Field(OriginalEncoder(), description="the encoder to pretrain")  # type: ignore[assignment]
    untrainable: ClassVar[dict[str, str]] = WITHOUT_POSITIONS
    optimizer: APLOptimizer = APLOptimizer()
    grid: int = Field(7, ge=2, le=2**12, description="patches along each side of the image; the remainder is left out")
    crop: Whole = Field(1, description="pixels taken off each side length of a patch, in total")
    patch_dropout: float = Field(0.1, ge=0, lt=1, description="probability of blanking out a patch")
    head: Literal["linear", "mlp"] = Field(
        "linear",
        description="classifier of positions on every token; mlp: with a hidden layer of ReLU, three times as wide",
    )


def assemble(config: APLConfig, data: sb.data.ImageData) -> sb.PatchPuzzle:
    """Put the objective together from its parts."""
    from timm.layers import Mlp  # not above: --help would wait for them
    from torch import nn

    tokenizer = sb.PatchTokenizer.from_grid(
        image_size=data.shape[1:], grid=config.grid, channels=data.shape.channels, crop=config.crop
    )
    with section("encoder"):
        encoder = config.encoder.build(tokenizer)
    target = sb.PositionTarget(tokenizer)
    width = encoder.dim
    head = (
        Mlp(width, 3 * width, target.dim, act_layer=nn.ReLU) if config.head == "mlp" else nn.Linear(width, target.dim)
    )
    return sb.PatchPuzzle(
        encoder=encoder, tokenizer=tokenizer, target=target, head=head, patch_dropout=config.patch_dropout
    )


RECIPE = Recipe("apl", APLConfig, assemble, presets=Path(__file__).parent / "presets")
