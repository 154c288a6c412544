"""The patch puzzle: say of every patch where it was taken from."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_blocks.bounds import Dropped
from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.modes import modes_kept
from ssl_blocks.objectives.objective import Objective, check_parts
from ssl_blocks.parts.loss import predicted_cross_entropy
from ssl_blocks.parts.target import PositionTarget, Target
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.randomness import check_generator
from ssl_blocks.values import ObjectiveOutput

TOPS = (1, 3, 5)
_POSITIONS = re.compile(
    r"(^|\.)(rope|rotary|rel_pos|relative_position|(abs_)?pos(ition(al|s)?)?_?(emb|enc)|embed_position)\w*(\.|$)"
)


@checked
@dataclass(frozen=True, eq=False)
class PuzzleDraw:
    """The random choices of a patch puzzle.

    Args:
        is_dropped: ``[B, N]``, ``True`` for patches that the encoder does not get to see.
    """

    is_dropped: Bool[Tensor, "b n"]


@checked
class PatchPuzzle(Objective):
    """Tell the position of every patch from the patches alone.

    APL, the patch puzzle. The encoder gets all patches of an image and nothing that says where they lie, so that it has
    to find their places in what they show; a linear classifier over positions reads the answer off each token. For an
    encoder without positions the order of the patches makes no difference, so they need not be shuffled.

    Patch dropout puts a zero vector in the place of a token that enters the blocks. It stays in the sequence and is
    attended to, but does not count in the loss, which is the mean cross-entropy over all other tokens of the batch.
    Where all of them are dropped the loss is 0, as in every objective here (in the original it is NaN). The accuracies
    count all tokens, and among them those that could only be guessed.

    Each prediction has to see its own patch; what ``assert_no_leak`` proves is that dropped patches are seen by none.

    Args:
        encoder: any token encoder without positions.
        tokenizer: cuts the images into the encoder's patches. Crop them, or edges that neighbours share will
            give their places away.
        target: what is predicted; `PositionTarget` by default.
        head: from the encoder's width to the target's, applied to each token; ``None`` means one Linear. An MLP such as
            ``timm.layers.Mlp(encoder.dim, out_features=target.dim)`` fits as well.
        patch_dropout: probability of dropping a patch.

    Raises:
        ValueError: if tokenizer and encoder do not fit, there is only one patch, ``patch_dropout`` is not in [0, 1),
            or the encoder knows where tokens lie.

    Examples:
        >>> import ssl_blocks as sb
        >>> tokenizer = sb.PatchTokenizer.from_grid(image_size=32, grid=4, crop=2)  # patches of 6x6 pixels
        >>> encoder = sb.encoders.timm_vit(image_size=24, patch_size=6, depth=2, positions="none")
        >>> puzzle = PatchPuzzle(encoder=encoder, tokenizer=tokenizer, patch_dropout=0.1)
        >>> out = puzzle(torch.rand(2, 3, 32, 32))
        >>> out.predictions.shape, sorted(out.metrics)
        (torch.Size([2, 16, 16]), ['puzzle_top1', 'puzzle_top3', 'puzzle_top5'])
    """

    encoder: TokenEncoder
    tokenizer: Tokenizer

    def __init__(
        self,
        *,
        encoder: TokenEncoder,
        tokenizer: Tokenizer,
        target: Target | None = None,
        head: nn.Module | None = None,
        patch_dropout: Dropped = 0.0,
    ) -> None:
        super().__init__()
        if tokenizer.grid.num_tokens < 2:
            raise ValueError(f"the tokenizer's grid {tokenizer.grid} is one patch: a puzzle needs at least two")
        _refuse_positions(encoder)
        self.encoder, self.tokenizer, self.patch_dropout = encoder, tokenizer, patch_dropout
        self.target = PositionTarget(tokenizer) if target is None else target
        self.head = nn.Linear(encoder.dim, self.target.dim) if head is None else head
        check_parts(self, width=encoder.dim)

    def draw(self, images: Float[Tensor, "b c *s"], *, generator: torch.Generator | None = None) -> PuzzleDraw:
        """Draw the patches to drop, each by itself.

        Args:
            images: ``[B, C, H, W]``; only their number and device matter.
            generator: source of randomness on the images' device; ``None`` uses torch's default.

        Raises:
            ValueError: if there is no image, or the generator is on another device.
        """
        check_generator(generator, images.device)
        shape = (images.shape[0], self.tokenizer.grid.num_tokens)
        return PuzzleDraw(torch.rand(shape, generator=generator, device=images.device) < self.patch_dropout)

    def forward(self, images: Float[Tensor, "b c *s"], draw: PuzzleDraw | None = None) -> ObjectiveOutput:
        """Predict the position of every patch.

        Args:
            images: ``[B, C, H, W]``.
            draw: the random choices; ``None`` makes them here.

        Returns:
            Rows for all patches in raster order, of which the dropped ones are no targets; ``metrics`` are accuracies.

        Raises:
            ValueError: if the images do not fit the tokenizer.
        """
        patches = self.tokenizer(images)
        if draw is None:
            draw = self.draw(images)
        tokens = self.encoder.embed(patches).masked_fill(draw.is_dropped[..., None], 0.0)
        states = self.encoder.encode(tokens, None)
        predictions = self.head(states.final[:, self.encoder.num_prefix :])
        targets, is_target = self.target(images), ~draw.is_dropped
        index = torch.arange(tokens.shape[1], device=images.device).expand(tokens.shape[:2])
        return ObjectiveOutput(
            loss=predicted_cross_entropy(predictions, targets, is_target),
            predictions=predictions,
            targets=targets,
            index=index,
            step=torch.zeros_like(index),
            is_target=is_target,
            draw=draw,
            given=is_target[:, None].expand(-1, tokens.shape[1], -1),
            metrics=_accuracies(predictions, targets),
        )

    def measure(self, images: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, ""]]:
        """Share of the patches whose place is right, and among the first three and five guesses; none is dropped."""
        out: ObjectiveOutput = self(images, self.keep_all(images))
        return out.metrics

    def keep_all(self, images: Float[Tensor, "b c *s"]) -> PuzzleDraw:
        """The draw that drops nothing: for accuracies and pictures."""
        shape = (images.shape[0], self.tokenizer.grid.num_tokens)
        return PuzzleDraw(torch.zeros(shape, dtype=torch.bool, device=images.device))


def _accuracies(predictions: Float[Tensor, "b n p"], targets: Float[Tensor, "b n p"]) -> dict[str, Float[Tensor, ""]]:
    """Top-k accuracies over all tokens. Of equal logits the first ones are taken, so they are right by chance only."""
    guesses = predictions.detach().topk(min(max(TOPS), predictions.shape[-1]), dim=-1).indices
    is_right = guesses == targets.argmax(-1, keepdim=True)
    return {f"puzzle_top{k}": is_right[..., :k].any(-1).float().mean() for k in TOPS}


def _refuse_positions(encoder: TokenEncoder) -> None:
    """Refuse an encoder that could read off where a token lies.

    Looks for tables by name and, where there are weights to compute with, at what the encoder does.
    """
    name = type(encoder).__name__
    module = encoder.module
    parts = [*module.named_parameters(), *module.named_buffers(), *module.named_modules()]
    tables = sorted({part for part, _ in parts if _POSITIONS.search(part)})
    advice = (
        "a puzzle's encoder must not know where patches lie. Build one without positions, for example "
        "encoders.timm_vit(..., positions='none')"
    )
    if tables:
        raise ValueError(f"{name} owns positions ({tables[0]}): {advice}")
    if any(p.device.type == "meta" for p in module.parameters()):
        return
    like = next(module.parameters())
    noise = torch.randn(1, min(8, encoder.grid.num_tokens), encoder.dim, generator=torch.Generator().manual_seed(0))
    tokens = noise.to(device=like.device, dtype=like.dtype)
    places = torch.arange(tokens.shape[1], device=tokens.device)[None]
    with torch.no_grad(), modes_kept(encoder if isinstance(encoder, nn.Module) else module, training=False):
        here, there = (encoder.encode(tokens, at).final for at in (places, encoder.grid.num_tokens - 1 - places))
        one, other = (encoder.encode(x, None).final[:, encoder.num_prefix :] for x in (tokens, tokens.flip(1)))
    if not torch.equal(here, there):
        raise ValueError(f"{name} encodes the same tokens differently at other positions: {advice}")
    rounding = 1000 * torch.finfo(one.dtype).eps * one.abs().amax()
    if bool((one - other.flip(1)).abs().amax() > rounding):
        raise ValueError(f"{name} encodes tokens differently in another order, even without positions: {advice}")
