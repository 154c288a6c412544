"""One training step of MAE: this library against lightly's MAE components.

    python -m examples.benchmarks.masked --batch 32 --rounds 15

CIFAR size: ViT-T (12 layers, 192 wide, 3 heads, class token), 4x4 patches of 32x32 images, decoder of 4 blocks, 192
wide, three quarters hidden, targets not normalised (lightly's example has it so). One thread, runs alternate.
"""

import argparse
import statistics
import warnings

import timm
import torch
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from torch import Tensor, nn

import ssl_blocks as sb
from examples.benchmarks.speed import DTYPES, machine, step

IMAGE, PATCH, DIM, HEADS, DEPTH, DECODER_DEPTH = 32, 4, 192, 3, 12, 4
NUM_PATCHES = (IMAGE // PATCH) ** 2


def ours() -> sb.SegmentPrediction:
    """MAE of this library."""
    encoder = sb.encoders.timm_vit(
        image_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, class_token=True
    )
    tokenizer = sb.PatchTokenizer(image_size=IMAGE, patch_size=PATCH)
    return sb.mae(
        encoder=encoder,
        tokenizer=tokenizer,
        target=sb.PixelTarget(tokenizer, normalize=False),
        decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=DIM, depth=DECODER_DEPTH, num_heads=HEADS),
    )


class Theirs(nn.Module):
    """MAE of lightly's components, put together as its documentation does."""

    def __init__(self) -> None:
        super().__init__()
        vit = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=IMAGE,
            patch_size=PATCH,
            embed_dim=DIM,
            depth=DEPTH,
            num_heads=HEADS,
            num_classes=0,
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = MAEDecoderTIMM(
            num_patches=NUM_PATCHES,
            patch_size=PATCH,
            embed_dim=DIM,
            decoder_embed_dim=DIM,
            decoder_depth=DECODER_DEPTH,
            decoder_num_heads=HEADS,
        )

    def forward(self, images: Tensor) -> Tensor:
        """The loss."""
        size = (len(images), NUM_PATCHES + 1)
        keep, mask = utils.random_token_mask(size=size, mask_ratio=0.75, device=images.device)
        decoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, decoded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), mask))
        target = utils.get_at_index(utils.patchify(images, PATCH), mask - 1)
        loss: Tensor = nn.functional.mse_loss(predicted, target)
        return loss


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each, after two to warm up")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*deprecated.*")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library, lightly = ours(), Theirs()
    sizes = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (library, lightly)]
    images, device = torch.randn(args.batch, 3, IMAGE, IMAGE), torch.device("cpu")
    print(machine(device))
    print(f"MAE ViT-T/{PATCH}, {IMAGE} px, batch {args.batch}; trained: ours {sizes[0]:,}, lightly {sizes[1]:,}")
    for name, dtype in DTYPES.items():
        times: dict[str, list[float]] = {"ours": [], "lightly": []}
        for turn in range(args.rounds + 2):
            mine = step(library, lambda: library(images).loss, dtype, device)
            theirs = step(lightly, lambda: lightly(images), dtype, device)
            if turn >= 2:
                times["ours"].append(mine * 1e3)
                times["lightly"].append(theirs * 1e3)
        ratios = [b / a for a, b in zip(times["ours"], times["lightly"], strict=True)]
        shown = ", ".join(f"{k} {statistics.median(v):.0f} ms ({min(v):.0f}-{max(v):.0f})" for k, v in times.items())
        print(f"{name}: {shown}, {statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
