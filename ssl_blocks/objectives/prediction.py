"""Prediction of segments from segments: RandSAC, MAE, SAIM, SimMIM and all that differs from them in its parts."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Count
from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.objectives.objective import Objective, check_parts
from ssl_blocks.parts.attention import can_be_looked_at
from ssl_blocks.parts.loss import Loss, predicted_mse
from ssl_blocks.parts.mask import MaskBuilder, SegmentCausalMask
from ssl_blocks.parts.partition import SegmentPartitioner
from ssl_blocks.parts.read import Reader
from ssl_blocks.parts.serialize import RandomSerializer, Serializer
from ssl_blocks.parts.target import Target
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.values import ObjectiveOutput, Serialization


@checked
class SegmentPrediction(Objective):
    """Predict segments of an image from other segments: what tokens hold, where they sit, who may see whom.

    Segments are read in an order, a step each. The first step is given; every later one is predicted, all of its tokens
    at once, from what its mask lets it see. RandSAC reads random segments one after the other under a causal mask (Hua
    et al., Sec. 3). MAE is two steps, given and hidden, that see all of what is given (He et al., Sec. 3). The builders
    `randsac`, `mae`, `saim` and `simmim` put these together.

    Args:
        encoder: any token encoder.
        tokenizer: cuts the images into the encoder's patches.
        partitioner: draws the segments.
        reader: encodes what may be seen and reads predictions out of it: `DecoderReader` or `QueryReader`.
        target: what is predicted of every patch.
        serializer: order of the segments; random by default.
        mask: who may attend to whom; causal over segments by default.
        loss: compares predictions with targets; the mean squared error by default.
        head: from the reader's width to the target's; ``None`` means one Linear.
        predict_first: also predict the first segment, from the encoder's prefix tokens alone.
        num_predicted: how many steps are predicted; those behind them are neither given nor predicted, and are not even
            encoded where steps have one size (CrossMAE's partial prediction). ``None``: all.

    Raises:
        ValueError: if tokenizer and encoder do not fit, ``predict_first`` is asked of an encoder without
            prefix tokens, or ``num_predicted`` is below 1.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=32, patch_size=4, depth=2)
        >>> tokenizer = sb.PatchTokenizer(image_size=32, patch_size=4)
        >>> objective = SegmentPrediction(
        ...     encoder=encoder,
        ...     tokenizer=tokenizer,
        ...     partitioner=sb.SquarePartitioner(sides=(2, 4)),
        ...     reader=sb.DecoderReader(
        ...         sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=1),
        ...         sb.SegmentDecoder(grid=encoder.grid, dim=192, depth=1, num_heads=3),
        ...     ),
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
        reader: Reader,
        target: Target,
        serializer: Serializer | None = None,
        mask: MaskBuilder | None = None,
        loss: Loss = predicted_mse,
        head: nn.Module | None = None,
        predict_first: bool = False,
        num_predicted: Count | None = None,
    ) -> None:
        super().__init__()
        if predict_first and not encoder.num_prefix:
            raise ValueError("predict_first=True needs an encoder with a prefix token: the first segment sees no other")
        self.num_predicted = num_predicted
        self.encoder, self.tokenizer, self.partitioner, self.reader = encoder, tokenizer, partitioner, reader
        self.target, self.loss, self.predict_first = target, loss, predict_first
        self.serializer = RandomSerializer() if serializer is None else serializer
        self.mask = SegmentCausalMask() if mask is None else mask
        self.head = nn.Linear(reader.dim, target.dim) if head is None else head
        check_parts(self, width=reader.dim)

    def draw(self, images: Float[Tensor, "b c *s"], *, generator: torch.Generator | None = None) -> Serialization:
        """Draw segments and their order for every image.

        Args:
            images: ``[B, C, H, W]``, or of other axes; most partitioners read only their number and device.
            generator: source of randomness on the images' device; ``None`` uses torch's default.

        Raises:
            ValueError: if there is no image, the generator is on another device, each image is one single segment by
                construction, which leaves nothing to predict, or (looked at on CPU) the order is none, see
                `Serialization.check`.
        """
        grid = self.tokenizer.grid
        segments = self.partitioner(images, grid, generator=generator)
        if segments.counts[0] == 1 and not self.predict_first:
            raise ValueError(
                f"{type(self.partitioner).__name__} makes one segment of the {grid} grid: the first segment is context "
                "only, so nothing is left to predict. Use smaller or more segments"
            )
        draw = self.serializer(segments, generator=generator)
        if can_be_looked_at(draw.order):
            draw.check()
        return draw

    def forward(self, images: Float[Tensor, "b c *s"], draw: Serialization | None = None) -> ObjectiveOutput:
        """Predict every segment but those that are given.

        Args:
            images: ``[B, C, H, W]``.
            draw: the random choices; ``None`` makes them here.

        Returns:
            Rows for the predicted slots, in sequence order. Where segments differ in size from image to image
            there is a row for every slot, and ``is_target`` leaves out those of given segments.

        Raises:
            ValueError: if the images do not fit the tokenizer, the target not the grid and the head, or the loss is no
                scalar.
        """
        patches = self.tokenizer(images)
        if draw is None:
            draw = self.draw(images)
        encoded, predicted = self._windows(draw)
        masks = self.mask(draw, encoded, predicted, self.encoder.num_prefix, self.predict_first)
        index, step = draw.order[:, predicted], draw.step[:, predicted]
        content = self.encoder.embed(draw.take(patches, encoded))
        predictions = self.head(self.reader(self.encoder, content, draw.order[:, encoded], index, masks))
        whole = self.target(images)
        if whole.shape[1:] != (patches.shape[1], predictions.shape[-1]):
            raise ValueError(
                f"target {type(self.target).__name__} must give [B, N, P] with {patches.shape[1]} positions of "
                f"{predictions.shape[-1]} values, as the grid and the head have them, got shape {tuple(whole.shape)}"
            )
        targets = draw.take(whole, predicted)
        is_target, given = step >= self._first, None
        if self.num_predicted is not None:
            is_target &= step < self._first + self.num_predicted
            given = draw.put(draw.step < self._first)
        loss = self.loss(predictions, targets, is_target)
        if loss.ndim:
            raise ValueError(f"loss must return a scalar, the mean over what counts, got shape {tuple(loss.shape)}")
        return ObjectiveOutput(
            loss=loss,
            predictions=predictions,
            targets=targets,
            index=index,
            step=step,
            is_target=is_target,
            draw=draw,
            given=given,
        )

    @property
    def _first(self) -> int:
        """The first step that is predicted."""
        return 0 if self.predict_first else int(getattr(self.mask, "num_given", 1))

    def _windows(self, draw: Serialization) -> tuple[slice, slice]:
        """Slots that are encoded and predicted; nothing sees what lies behind the last step that is predicted."""
        encoded, predicted = draw.windows(self.predict_first)
        if self.num_predicted is None or draw.step_sizes is None:
            return encoded, predicted
        last = self._first + self.num_predicted
        seen, asked = (sum(draw.step_sizes[:steps]) for steps in (last - 1, last))
        return slice(0, min(encoded.stop, seen)), slice(predicted.start, asked)
