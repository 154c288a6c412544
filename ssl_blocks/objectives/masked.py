"""Masked autoencoding: MAE and what differs from it in its mask or its decoder."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.objectives.objective import Objective, check_tokenizer
from ssl_blocks.parts.decode import Decoder
from ssl_blocks.parts.loss import predicted_mse
from ssl_blocks.parts.partition import SegmentPartitioner, SubsetPartitioner
from ssl_blocks.parts.route import LastLayerRouter, SkipMemoryRouter
from ssl_blocks.parts.serialize import OrderedSerializer
from ssl_blocks.parts.target import Target
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import AttentionMasks, ObjectiveOutput, Serialization


class MaskedAutoencoding(Objective):
    """Encode a part of the patches, and predict the others.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", Sec. 3. Hidden patches are left out before anything
    is embedded. All encoded tokens see each other, the class token included. The loss is the mean squared error over
    the hidden patches.

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images into the encoder's patches.
        target: what is predicted of every patch.
        decoder: predicts at the hidden positions; MAE's is `MaskTokenDecoder`.
        partitioner: draws two segments of fixed size: id 0 is visible, id 1 hidden. By default a random quarter is
            visible.
        router: what the decoder gets of the encoder's states; by default the normalised last ones, once.
        head: from the decoder's width to the target's; ``None`` means one Linear.

    Raises:
        ValueError: if tokenizer and encoder do not fit.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2, class_token=True)
        >>> tokenizer = sb.PatchTokenizer(image_size=32, patch_size=4)
        >>> mae = MaskedAutoencoding(
        ...     encoder=encoder,
        ...     tokenizer=tokenizer,
        ...     target=sb.PixelTarget(tokenizer, normalize=True),
        ...     decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=64, depth=2, num_heads=2, memory_dim=encoder.dim),
        ... )
        >>> mae(torch.rand(2, 3, 32, 32)).predictions.shape  # three quarters of 64 tokens
        torch.Size([2, 48, 48])
    """

    encoder: TokenEncoder
    tokenizer: Tokenizer

    def __init__(
        self,
        *,
        encoder: TokenEncoder,
        tokenizer: Tokenizer,
        target: Target,
        decoder: Decoder,
        partitioner: SegmentPartitioner | None = None,
        router: SkipMemoryRouter | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_tokenizer(tokenizer, encoder)
        self.encoder, self.tokenizer, self.target, self.decoder = encoder, tokenizer, target, decoder
        self.partitioner = SubsetPartitioner(hidden=0.75) if partitioner is None else partitioner
        self.router = LastLayerRouter(decoder_depth=1) if router is None else router
        self.head = nn.Linear(decoder.dim, target.dim) if head is None else head
        self.serializer = OrderedSerializer()

    def draw(self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> Serialization:
        """Draw which patches every image keeps.

        Args:
            images: ``[B, C, H, W]``; only their number and device matter.
            generator: source of randomness on the images' device; ``None`` uses torch's default.

        Raises:
            ValueError: if the generator is on another device, or the partitioner does not make two segments of
                fixed size.
        """
        segments = self.partitioner(images, self.tokenizer.grid, generator=generator)
        if segments.counts[0] != 2 or segments.step_sizes is None:
            sizes = "varying" if segments.step_sizes is None else "fixed"
            raise ValueError(
                f"{type(self.partitioner).__name__} makes {segments.counts[0]} segments of {sizes} size, expected two "
                "of fixed size, visible and hidden, such as SubsetPartitioner's"
            )
        return self.serializer(segments, generator=generator)

    def forward(self, images: Float[Tensor, "b c h w"], draw: Serialization | None = None) -> ObjectiveOutput:
        """Predict the hidden patches.

        Args:
            images: ``[B, C, H, W]``.
            draw: the random choices; ``None`` makes them here.

        Returns:
            Rows for the hidden patches.

        Raises:
            ValueError: if the images do not fit the tokenizer.
        """
        patches = self.tokenizer(images)
        if draw is None:
            draw = self.draw(images)
        visible, hidden = draw.windows()
        index, known = draw.order[:, hidden], draw.order[:, visible]
        states = self.encoder.encode(self.encoder.embed(draw.take(patches, visible)), known)
        memories = self.router(states.hidden, self.encoder.norm)
        masks = _all_see_all(states.final.shape[1], index.shape[1], images.device)
        decoded = self.decoder(memories, masks, query_index=index, memory_index=known)
        predictions, targets = self.head(decoded), draw.take(self.target(images), hidden)
        step = draw.step[:, hidden]
        is_target = torch.ones_like(step, dtype=torch.bool)
        return ObjectiveOutput(
            loss=predicted_mse(predictions, targets, is_target),
            predictions=predictions,
            targets=targets,
            index=index,
            step=step,
            is_target=is_target,
            draw=draw,
        )


def _all_see_all(encoded: int, predicted: int, device: torch.device) -> AttentionMasks:
    sizes = ((encoded, encoded), (predicted, predicted), (predicted, encoded))
    source, target, memory = (torch.ones(1, 1, q, k, dtype=torch.bool, device=device) for q, k in sizes)
    return AttentionMasks(source=source, target=target, memory=memory)
