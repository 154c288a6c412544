"""Does it leak? The leak test and the noise floor on two classic mistakes, and on building blocks of another library.

Idea     a prediction must not see what it predicts: `check_leaks` follows pixels, `noise_floor` trains on noise
What     stand-ins that reproduce two mistakes people make with masks, beside what is right; and lightly's installed
         building blocks, combined as its documentation combines them (AIM, MAE, SimMIM)
Command  python examples/leak_audit.py
Time     two minutes on two CPU cores; docs/leaks.md shows what it printed
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version

import torch
from lightly.models import utils
from lightly.models.modules import (
    AIMPredictionHead,
    MaskedCausalVisionTransformer,
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
)
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ssl_blocks.testing import Predicted, check_leaks, noise_floor

SIZE, PATCH, DIM, HEADS, DEPTH = 16, 4, 48, 3, 2
N, VALUES = (SIZE // PATCH) ** 2, 3 * PATCH**2


def patches_of(images: Tensor) -> Tensor:
    """Normalised patches ``[B, N, P]``."""
    normalised: Tensor = utils.normalize_mean_var(utils.patchify(images, PATCH), dim=-1)
    return normalised


class Causal(nn.Module):
    """Predict each patch from those before it, by timm's blocks, whose masks are True where attention is allowed.

    A learned start token comes first, and the last patch is left out, so slot i holds patch i - 1 and predicts patch i.

    Args:
        inverted: hand timm a mask that is True where attention is forbidden, as ``nn.MultiheadAttention`` has it.
        unshifted: leave the start token out and keep the last patch, so that slot i holds the patch that it predicts,
            while the mask lets it see itself.
    """

    def __init__(self, *, inverted: bool = False, unshifted: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(VALUES, DIM), nn.Linear(DIM, VALUES)
        self.start, self.place = nn.Parameter(torch.randn(1, 1, DIM)), nn.Parameter(torch.randn(1, N, DIM))
        self.blocks = nn.ModuleList(Block(DIM, HEADS, qkv_bias=True) for _ in range(DEPTH))
        self.inverted, self.unshifted = inverted, unshifted

    def forward(self, images: Tensor) -> Predicted:
        patches = patches_of(images)
        tokens = self.embed(patches)
        if not self.unshifted:
            tokens = torch.cat([self.start.expand(len(images), -1, -1), tokens[:, :-1]], dim=1)
        x = tokens + self.place
        sees = torch.ones(N, N, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, attn_mask=~sees if self.inverted else sees)
        index = torch.arange(N, device=x.device).expand(len(images), -1)
        return Predicted(self.head(x), patches, index, step=index)


class LightlyAIM(nn.Module):
    """AIM: a prefix that sees itself whole, causal attention behind it, and a target for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MaskedCausalVisionTransformer(
            img_size=SIZE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS,
            qk_norm=False, class_token=False, no_embed_class=True, global_pool="avg",
        )  # fmt: skip
        utils.initialize_2d_sine_cosine_positional_embedding(pos_embedding=self.backbone.pos_embed, num_prefix_tokens=0)
        self.head = AIMPredictionHead(input_dim=DIM, output_dim=VALUES, hidden_dim=DIM, num_blocks=1)

    def forward(self, images: Tensor) -> Predicted:
        mask = utils.random_prefix_mask(size=(len(images), N), max_prefix_length=N - 1, device=images.device)
        features = self.backbone._pos_embed(self.backbone.forward_features(images, mask=mask))
        index = torch.arange(N, device=images.device).expand(len(images), -1)
        return Predicted(self.head(features), patches_of(images), index, step=index)


def vit() -> VisionTransformer:
    return VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS)


class LightlyMAE(nn.Module):
    """MAE: encode what is kept, fill in mask tokens, and predict the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MaskedVisionTransformerTIMM(vit=vit())
        self.embed, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, VALUES)
        self.decoder = MaskedVisionTransformerDecoderTIMM(num_patches=N, embed_dim=DIM, depth=1, num_heads=HEADS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        length = self.backbone.sequence_length
        keep, hidden = utils.random_token_mask(size=(len(images), length), mask_ratio=0.75, device=images.device)
        known = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        asked = utils.repeat_token(self.decoder.mask_token, (len(images), length))
        decoded = self.decoder.decode(utils.set_at_index(asked, keep, known.type_as(asked)))
        rows = self.head(utils.get_at_index(decoded, hidden))
        return rows, utils.get_at_index(patches_of(images), hidden - 1)  # the class token is number 0


class LightlySimMIM(nn.Module):
    """SimMIM: mask tokens in the encoder, and one linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = MaskedVisionTransformerTIMM(vit=vit()), nn.Linear(DIM, VALUES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), self.backbone.sequence_length)
        _, hidden = utils.random_token_mask(size=size, mask_ratio=0.75, device=images.device)
        encoded = self.backbone.encode(images=images, idx_mask=hidden)
        rows = self.head(utils.get_at_index(encoded, hidden))
        return rows, utils.get_at_index(patches_of(images), hidden - 1)


SUBJECTS: dict[str, Callable[[], nn.Module]] = {
    "causal, as it should be": Causal,
    "mask inverted for timm": lambda: Causal(inverted=True),
    "targets not shifted": lambda: Causal(unshifted=True),
    "lightly: AIM": LightlyAIM,
    "lightly: MAE": LightlyMAE,
    "lightly: SimMIM": LightlySimMIM,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="of training on noise")
    parser.add_argument("--only", choices=[*SUBJECTS], help="one of the subjects")
    options = parser.parse_args(argv)
    names = ("torch", "timm", "lightly")
    print(", ".join(f"{name} {version(name)}" for name in names))
    for name in [options.only] if options.only else SUBJECTS:
        torch.manual_seed(0)
        model = SUBJECTS[name]()
        generator = torch.Generator().manual_seed(0)
        report = check_leaks(model, torch.randn(2, 3, SIZE, SIZE), patch_size=PATCH, generator=generator)
        floor = noise_floor(model, shape=(3, SIZE, SIZE), steps=options.steps, batch_size=32)
        found = report.leaks[0] if report.leaks else f"no leak in {report.draws} draws"
        print(f"\n{name}\n  check_leaks: {found}\n  noise_floor: {floor}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
