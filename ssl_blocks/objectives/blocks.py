"""Prediction of blocks that may overlap, each by itself, from one encoding of what is given: I-JEPA."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.objectives.objective import Objective, check_parts
from ssl_blocks.parts.blocks import BlockSampler, TargetBlocks
from ssl_blocks.parts.decode import Decoder
from ssl_blocks.parts.loss import Loss, predicted_smooth_l1
from ssl_blocks.parts.route import LastLayerRouter, SkipMemoryRouter
from ssl_blocks.parts.target import Target
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import AttentionMasks, ObjectiveOutput, gather_tokens


@checked
class BlockPrediction(Objective):
    """Encode what is given of an image once, and predict several blocks of it, each without a look at the others.

    I-JEPA (Assran et al., Sec. 3), where the target is a moving average's encoding of the whole image. Blocks may
    overlap; tokens that are neither given nor in a block take no part.

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images.
        sampler: draws what is given and the blocks.
        decoder: predicts one block from what is given: I-JEPA's predictor is a narrow `MaskTokenDecoder`.
        target: what is predicted of every patch.
        router: what the decoder gets of the encoder; ``None``: the normalised last states, once.
        loss: compares predictions with targets.
        head: from the decoder's width to the target's; ``None`` means one Linear.

    Raises:
        ValueError: if tokenizer and encoder do not fit.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2)
        >>> objective = BlockPrediction(
        ...     encoder=encoder,
        ...     tokenizer=sb.PatchTokenizer(image_size=32, patch_size=4),
        ...     sampler=sb.parts.RectangleSampler(count=4, size=(3, 3)),
        ...     decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=96, depth=2, num_heads=3, memory_dim=encoder.dim),
        ...     target=sb.EncoderTarget(sb.MovingAverage(encoder, momentum=0.996), norm="token"),
        ... )
        >>> objective(torch.rand(2, 3, 32, 32)).predictions.shape  # four blocks of 9 tokens
        torch.Size([2, 36, 192])
    """

    encoder: TokenEncoder
    tokenizer: Tokenizer

    def __init__(
        self,
        *,
        encoder: TokenEncoder,
        tokenizer: Tokenizer,
        sampler: BlockSampler,
        decoder: Decoder,
        target: Target,
        router: SkipMemoryRouter | None = None,
        loss: Loss = predicted_smooth_l1,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.sampler, self.decoder = encoder, tokenizer, sampler, decoder
        self.target, self.loss = target, loss
        self.router = LastLayerRouter(decoder_depth=1) if router is None else router
        self.head = nn.Linear(decoder.dim, target.dim) if head is None else head
        check_parts(self, width=decoder.dim)

    def draw(self, images: Float[Tensor, "b c *s"], *, generator: torch.Generator | None = None) -> TargetBlocks:
        """Draw what is given and the blocks, for every image."""
        return self.sampler(images, self.tokenizer.grid, generator=generator)

    def forward(self, images: Float[Tensor, "b c *s"], draw: TargetBlocks | None = None) -> ObjectiveOutput:
        """Predict every block.

        Args:
            images: ``[B, C, ...]``.
            draw: the random choices; ``None`` makes them here.

        Returns:
            Rows for all positions of all blocks, block by block. A position that lies in two has two rows.
        """
        draw = self.draw(images) if draw is None else draw
        patches, (batch, count, size) = self.tokenizer(images), draw.asked.shape
        states = self.encoder.encode(self.encoder.embed(gather_tokens(patches, draw.given)), draw.given, None)
        # every block is an image of its own to the decoder
        memories = tuple(x.repeat_interleave(count, 0) for x in self.router(states.hidden, self.encoder.norm))
        ones = torch.ones(1, 1, size, size + memories[0].shape[1], dtype=torch.bool, device=images.device)
        out = self.decoder(
            memories,
            AttentionMasks(source=None, target=ones[..., :size], memory=ones[..., size:]),
            query_index=draw.asked.flatten(0, 1),
            memory_index=draw.given.repeat_interleave(count, 0),
        )
        predictions = self.head(out).reshape(batch, count * size, -1)
        index = draw.asked.flatten(1)
        is_target = torch.ones_like(index, dtype=torch.bool)
        targets = gather_tokens(self.target(images), index)
        given = torch.zeros(patches.shape[:2], dtype=torch.bool, device=index.device).scatter(1, draw.given, True)
        return ObjectiveOutput(
            loss=self.loss(predictions, targets, is_target),
            predictions=predictions,
            targets=targets,
            index=index,
            step=torch.ones_like(index),
            is_target=is_target,
            draw=draw,
            given=given,
        )
