"""HPM: hide the patches whose loss is expected to be large.

Paper    Wang et al.: "Hard Patches Mining for Masked Image Modeling"
Idea     Beside the pixels of hidden patches the student predicts where its own loss is large, learning to rank them.
         Its moving average looks at whole images, and a growing share of what is hidden is what it ranks hardest.
What     the pixels of a patch, normalised, by the squared error; and which of two patches has the larger loss
Where    three quarters of the patches: at first random ones, in the end half of them the hardest
Who      given tokens see each other; in the decoder all see all; the teacher sees the whole image
New      a partitioner that asks the teacher, a loss that ranks, and a target with room for the rank
Command  python examples/gallery/hpm.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssl_blocks as sb
from examples.gallery.run import Method
from ssl_blocks.randomness import check_generator

HIDDEN, LARGEST_SHARE = 0.75, 0.5


class RoomForRank(sb.PixelTarget):
    """Normalised pixels, and a 0 beside which the student says how hard the patch is."""

    def __init__(self, tokenizer: sb.PatchTokenizer) -> None:
        super().__init__(tokenizer, normalize=True)
        self.dim += 1

    def __call__(self, images: Tensor) -> Tensor:
        return F.pad(super().__call__(images), (0, 1))

    def to_pixels(self, predictions: Tensor, images: Tensor) -> Tensor:
        return super().to_pixels(predictions[..., :-1], images)


def ranked(predictions: Tensor, targets: Tensor, is_target: Tensor) -> Tensor:
    """The squared error of pixels, and how badly the last values order it."""
    error = (predictions - targets)[..., :-1].square().mean(-1)
    apart = predictions[..., -1, None] - predictions[..., None, :, -1]  # [B, t, t]
    harder = (error[:, :, None] > error[:, None]).to(apart.dtype).detach()
    return error.mean() + F.binary_cross_entropy_with_logits(apart, harder)


class Judge(nn.Module):
    """How hard every patch is, in sight of the whole image."""

    def __init__(self, encoder: sb.encoders.TimmViT, reader: sb.DecoderReader, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.reader, self.head = encoder, reader, head

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, N]``."""
        n, prefix = self.encoder.grid.num_tokens, self.encoder.num_prefix
        index = torch.arange(n, device=images.device).expand(len(images), -1)
        memory = torch.ones(1, 1, n, prefix + n, dtype=torch.bool, device=images.device)
        masks = sb.AttentionMasks(source=None, target=memory[..., prefix:], memory=memory)
        read: Tensor = self.reader(self.encoder, self.encoder.embed(images), index, index, masks)
        return self.head(read)[..., -1]  # type: ignore[no-any-return]


class HardPartitioner(nn.Module):
    """Hide what the teacher finds hardest, and others at random; the share of the former grows from step to step."""

    share: Tensor

    def __init__(self, teacher: sb.MovingAverage) -> None:
        super().__init__()
        self._teacher = (teacher,)  # the objective's, and registered there
        self.register_buffer("share", torch.zeros(()), persistent=False)  # where a captured CUDA graph reads it

    def before_step(self, progress: sb.Progress) -> None:
        self.share.fill_(LARGEST_SHARE * progress.step / progress.num_steps)

    @torch.no_grad()
    def forward(self, images: Tensor, grid: sb.Grid, *, generator: torch.Generator | None = None) -> sb.Segments:
        check_generator(generator, images.device)
        n, hidden = grid.num_tokens, int(grid.num_tokens * HIDDEN)
        chance = torch.rand(len(images), n, generator=generator, device=images.device)
        rank = self._teacher[0].copy(images).argsort(1, descending=True).argsort(1)  # 0: the hardest
        order = torch.where(rank < self.share * hidden, -1.0, chance).argsort(1).argsort(1)
        return sb.Segments(levels=((order < hidden).long(),), counts=(2,), step_sizes=(n - hidden, hidden))


def build(encoder: sb.encoders.TimmViT, tokenizer: sb.PatchTokenizer) -> sb.SegmentPrediction:
    """Put the objective together."""
    target = RoomForRank(tokenizer)
    decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=encoder.dim, depth=2, num_heads=4)
    objective = sb.mae(encoder=encoder, tokenizer=tokenizer, decoder=decoder, target=target, loss=ranked)
    reader, head = objective.reader, objective.head
    assert isinstance(reader, sb.DecoderReader)
    objective.teacher = sb.MovingAverage(Judge(encoder, reader, head), momentum=sb.parts.cosine_momentum(0.996))
    objective.partitioner = HardPartitioner(objective.teacher)
    return objective


METHOD = Method(build, class_token=True, draw_looks=True)

if __name__ == "__main__":
    raise SystemExit(METHOD.main())
