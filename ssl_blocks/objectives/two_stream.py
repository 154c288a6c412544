"""Autoregression over segments without a decoder: content and queries pass through the encoder together."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.objectives.objective import Objective, check_tokenizer
from ssl_blocks.objectives.sequence import check_predict_first, draw_sequence, score_sequence
from ssl_blocks.parts.mask import MaskBuilder, SegmentCausalMask
from ssl_blocks.parts.partition import SegmentPartitioner
from ssl_blocks.parts.read import joint_mask
from ssl_blocks.parts.serialize import RandomSerializer, Serializer
from ssl_blocks.parts.target import Target
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import ObjectiveOutput, Serialization


class TwoStreamAutoregression(Objective):
    """Predict each segment from those before it, by queries that pass through the encoder beside its content.

    Hua et al., "Self-supervision through Random Segments with Autoregressive Coding (RandSAC)", the two-stream row of
    Table 10, after XLNet. There is no decoder: a query is one learned vector, the same for all, with the position of
    the token to predict. Content sees no query; queries see the content of earlier segments, and the queries of their
    own segment and earlier ones. So one set of weights serves both streams, layer by layer.

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images into the encoder's patches.
        partitioner: draws the segments.
        target: what is predicted of every patch.
        serializer: order of the segments; random by default.
        mask: who may attend to whom; causal over segments by default.
        head: from the encoder's width to the target's; ``None`` means one Linear.
        predict_first: also predict the first segment, from the encoder's prefix tokens alone.

    Raises:
        ValueError: if tokenizer and encoder do not fit, or ``predict_first`` is asked of an encoder without
            prefix tokens.

    Examples:
        >>> import ssl_blocks as sb
        >>> tokenizer = sb.PatchTokenizer(image_size=32, patch_size=4)
        >>> objective = TwoStreamAutoregression(
        ...     encoder=sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2),
        ...     tokenizer=tokenizer,
        ...     partitioner=sb.SquarePartitioner(sides=(2, 4)),
        ...     target=sb.PixelTarget(tokenizer, normalize=True),
        ... )
        >>> objective(torch.rand(2, 3, 32, 32)).predictions.shape  # 64 tokens less the first segment's 4
        torch.Size([2, 60, 48])
    """

    encoder: TokenEncoder
    tokenizer: Tokenizer

    def __init__(
        self,
        *,
        encoder: TokenEncoder,
        tokenizer: Tokenizer,
        partitioner: SegmentPartitioner,
        target: Target,
        serializer: Serializer | None = None,
        mask: MaskBuilder | None = None,
        head: nn.Module | None = None,
        predict_first: bool = False,
    ) -> None:
        super().__init__()
        check_tokenizer(tokenizer, encoder)
        check_predict_first(encoder, predict_first)
        self.encoder, self.tokenizer, self.partitioner, self.target = encoder, tokenizer, partitioner, target
        self.serializer = RandomSerializer() if serializer is None else serializer
        self.mask = SegmentCausalMask() if mask is None else mask
        self.query = nn.Parameter(torch.randn(1, 1, encoder.dim) * 0.02)
        self.head = nn.Linear(encoder.dim, target.dim) if head is None else head
        self.predict_first = predict_first

    def no_weight_decay(self) -> set[str]:
        """Collect what the parts name, and the query."""
        return super().no_weight_decay() | {"query"}

    def draw(self, images: Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> Serialization:
        """Draw segments and their order for every image.

        Args:
            images: ``[B, C, H, W]``; only their number and device matter.
            generator: source of randomness on the images' device; ``None`` uses torch's default.

        Raises:
            ValueError: if the generator is on another device, or each image is one single segment by
                construction, which leaves nothing to predict.
        """
        return draw_sequence(
            self.partitioner,
            self.serializer,
            self.tokenizer.grid,
            images,
            generator=generator,
            predict_first=self.predict_first,
        )

    def forward(self, images: Float[Tensor, "b c h w"], draw: Serialization | None = None) -> ObjectiveOutput:
        """Predict every segment but the first.

        Args:
            images: ``[B, C, H, W]``.
            draw: the random choices; ``None`` makes them here.

        Returns:
            Rows for the predicted slots, in sequence order. Where segments differ in size from image to image
            there is a row for every slot, and ``is_target`` leaves out the first segment's.

        Raises:
            ValueError: if the images do not fit the tokenizer.
        """
        patches = self.tokenizer(images)
        if draw is None:
            draw = self.draw(images)
        encoded, predicted = draw.windows(self.predict_first)
        masks = self.mask(draw, encoded, predicted, self.encoder.num_prefix, self.predict_first)
        index = draw.order[:, predicted]

        content = self.encoder.embed(draw.take(patches, encoded))
        queries = self.query.to(content.dtype).expand(*index.shape, -1)
        states = self.encoder.encode(
            torch.cat([content, queries], dim=1), torch.cat([draw.order[:, encoded], index], dim=1), joint_mask(masks)
        )
        predictions = self.head(states.final[:, -index.shape[1] :])
        return score_sequence(predictions, self.target, images, draw, predict_first=self.predict_first)
