"""One training step of MAE: this library against lightly's MAE components.

    python -m examples.benchmarks.masked --batch 32 --rounds 15

CIFAR size: ViT-T (12 layers, 192 wide, 3 heads, class token), 4x4 patches of 32x32 images, decoder of 4 blocks, 192
wide, three quarters hidden, targets not normalised (lightly's example has it so). One thread, runs alternate.
"""

import argparse
import warnings

import timm
import torch
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from torch import Tensor, nn

from examples.benchmarks.measure import add_dtypes, compare_steps, machine
from examples.benchmarks.models import MAESize, mae


class Theirs(nn.Module):
    """MAE of lightly's components, put together as its documentation does."""

    def __init__(self, size: MAESize) -> None:
        super().__init__()
        self.size = size
        vit = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=size.image,
            patch_size=size.patch,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=size.heads,
            num_classes=0,
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = MAEDecoderTIMM(
            num_patches=size.num_patches,
            patch_size=size.patch,
            embed_dim=size.dim,
            decoder_embed_dim=size.width,
            decoder_depth=size.decoder_depth,
            decoder_num_heads=size.decoder_heads,
        )

    def forward(self, images: Tensor) -> Tensor:
        """The loss."""
        shape = (len(images), self.size.num_patches + 1)
        keep, mask = utils.random_token_mask(size=shape, mask_ratio=0.75, device=images.device)
        decoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, shape)
        tokens = utils.set_at_index(tokens, keep, decoded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), mask))
        target = utils.get_at_index(utils.patchify(images, self.size.patch), mask - 1)
        loss: Tensor = nn.functional.mse_loss(predicted, target)
        return loss


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each, after two to warm up")
    add_dtypes(parser)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*deprecated.*")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size, device = MAESize(), torch.device("cpu")
    objective, lightly = mae(size), Theirs(size)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (objective, lightly)]
    images = torch.randn(args.batch, 3, size.image, size.image)

    def ours() -> Tensor:
        loss: Tensor = objective(images).loss
        return loss

    print(machine(device))
    print(
        f"MAE ViT-T/{size.patch}, {size.image} px, batch {args.batch}, one training step, median of {args.rounds} "
        f"(min-max); trained: ours {counts[0]:,}, lightly {counts[1]:,}"
    )
    ways = {"ours": (objective, ours), "lightly": (lightly, lambda: lightly(images))}
    compare_steps(ways, args.dtypes, args.rounds, device)


if __name__ == "__main__":
    main()
