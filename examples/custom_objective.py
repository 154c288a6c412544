"""An objective of your own out of existing parts, one mask of your own, and a plain training loop.

Idea      As in MAE, a random quarter of the patches is encoded. In the decoder hidden positions do not see each other:
          each asks the encoded tokens by itself, every decoder layer its own mixture of encoder layers.
Parts     Two steps, given and predicted, are a serialization; a position that asks is a query of `SegmentDecoder`; the
          mixture of layers is RandSAC's `LearnedSkipRouter`. What is new is one mask: queries do not see each other.
Source    The idea is that of Fu et al.: "Rethinking Patch Dependence for Masked Autoencoders" (CrossMAE), whose recipe
          differs: examples/gallery/crossmae.py is that.
Command   python examples/custom_objective.py    under a minute on 2 CPU cores
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.data import load, to_float
from ssl_blocks.evaluation import knn_accuracy
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.testing import assert_no_leak

STEPS, BATCH, LEARNING_RATE = 400, 64, 2e-3


class LonelyQueries:
    """As the segment-causal mask has it, but each query sees no other query."""

    def __call__(
        self,
        serialization: sb.Serialization,
        encoded: slice,
        predicted: slice,
        num_prefix: int,
        predict_first: bool = False,
    ) -> sb.AttentionMasks:
        masks = sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first)
        itself = torch.eye(masks.target.shape[-1], dtype=torch.bool, device=masks.target.device)
        return dataclasses.replace(masks, target=itself[None, None])


def lonely_mae(image_size: int, patch_size: int, *, width: int, depth: int, heads: int) -> sb.SegmentPrediction:
    """Put the objective together for grey images."""
    size: dict[str, Any] = {"embed_dim": width, "depth": depth, "num_heads": heads}
    encoder = sb.encoders.timm_vit(image_size=image_size, patch_size=patch_size, channels=1, **size)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=patch_size, channels=1)
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SubsetPartitioner(hidden=0.75),
        serializer=sb.OrderedSerializer(),  # the visible ones first
        mask=LonelyQueries(),
        target=sb.PixelTarget(tokenizer, normalize=False),
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=depth, decoder_depth=2),
            sb.SegmentDecoder(grid=encoder.grid, dim=width, depth=2, num_heads=heads),
        ),
    )


def train(objective: sb.SegmentPrediction, images: Tensor, steps: int) -> list[float]:
    """A plain loop; the objective's hooks do nothing here, but another one's may."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    per_epoch = len(images) // BATCH
    losses = []
    for step in range(steps):
        objective.before_step(
            sb.Progress(step=step, epoch=step // per_epoch, num_steps=steps, steps_per_epoch=per_epoch)
        )
        generator = seeded_generator("cpu", 0, step)
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        loss = objective(batch, objective.draw(batch, generator=generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step()
        losses.append(loss.item())
    return losses


def main(steps: int = STEPS) -> tuple[float, float]:
    """Prove that nothing leaks, train, and compare features before and after."""
    torch.manual_seed(0)
    data = load("digits")
    assert data.test is not None
    train_images, test_images = (
        to_float(split.read(torch.arange(len(split))), data.mean, data.std) for split in (data.train, data.test)
    )
    objective = lonely_mae(8, 1, width=64, depth=4, heads=4)
    assert_no_leak(objective, train_images[:2], draws=16)
    print("no leak: hidden pixels have no say in their prediction, visible ones do")

    @torch.no_grad()
    def knn() -> float:
        assert data.train.labels is not None
        assert data.test is not None
        assert data.test.labels is not None
        bank, queries = (objective.encoder.features(images) for images in (train_images, test_images))
        return knn_accuracy(bank, data.train.labels, queries, data.test.labels, k=20)

    before = knn()
    losses = train(objective, train_images, steps)
    after = knn()
    print(f"loss {losses[0]:.3f} -> {sum(losses[-10:]) / 10:.3f}; kNN {before:.1%} -> {after:.1%} in {steps} steps")
    return before, after


if __name__ == "__main__":
    main()
