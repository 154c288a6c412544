"""A check for readers: what they say of a position depends on what its query may see, and on nothing else."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.parts.mask import MaskBuilder, SegmentCausalMask
from ssl_blocks.parts.partition import SegmentPartitioner, SubsetPartitioner
from ssl_blocks.parts.read import Reader
from ssl_blocks.parts.serialize import OrderedSerializer
from ssl_blocks.parts.tokenize import PatchTokenizer
from ssl_blocks.testing.mask_checks import reachable
from ssl_blocks.testing.role_case import Role, RoleReport, apart, noise, rows_of, seeded, shake
from ssl_blocks.testing.waits import check_waits
from ssl_blocks.values import AttentionMasks, Serialization

_BATCH = 3
_IN_ORDER = "the reader counts on the order of the sequence"


def check_reader(
    reader: Reader,
    encoder: TokenEncoder,
    *,
    mask: MaskBuilder | None = None,
    partitioner: SegmentPartitioner | None = None,
    has_positions: bool = True,
    in_order: bool = False,
    tolerance: float = 1e-4,
) -> RoleReport:
    """Prove that a reader keeps the promises of ``Reader``, on copies of reader and encoder whose weights are shaken.

    It returns ``[B, t, dim]``. Queries or content in another order, masks alike, give the same vectors in that order.
    Content that a query cannot hear of has no say (by noise), and what its mask lets it see has one; its position has
    one, too. An image alone is read as in a batch, a whole sequence under masks as its windows. Gradients reach every
    parameter that is the reader's own.

    Args:
        reader: the reader.
        encoder: a token encoder that it fits; small ones take a second.
        mask: mask builder that it fits; causal over segments by default.
        partitioner: draws what is given and what is predicted, read by ascending id; by default three subsets.
        has_positions: ``False`` expects that the place of a query does not matter.
        in_order: whether the reader counts on content and queries in the order of the sequence, as `NextReader` does:
            they are not exchanged then, and no query is moved.
        tolerance: largest difference relative to the largest value, where rounding may differ.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, depth=2, embed_dim=16, num_heads=2)
        >>> check_reader(sb.QueryReader(16), encoder).passed[:3]
        ('output', 'order of queries', 'order of content')
    """
    reader, encoder = copy.deepcopy((reader, encoder))
    parts = (reader, encoder if isinstance(encoder, nn.Module) else encoder.module)
    for module in (part for part in parts if isinstance(part, nn.Module)):
        module.eval()
        shake(module)
    mask = SegmentCausalMask() if mask is None else mask
    partitioner = SubsetPartitioner(hidden=(0.25, 0.5)) if partitioner is None else partitioner
    weight = next(encoder.module.parameters())
    size = tuple(n * p for n, p in zip(encoder.grid.sizes, encoder.patch, strict=True))
    images = noise(weight.device, _BATCH, encoder.channels, *size, dtype=weight.dtype)
    tokenizer = PatchTokenizer(image_size=size, patch_size=encoder.patch, channels=encoder.channels)
    draw = OrderedSerializer()(partitioner(images, encoder.grid, generator=seeded(images.device)))
    return _Case(reader, encoder, mask, tokenizer(images), draw, has_positions, in_order, tolerance).run()


@dataclass(frozen=True)
class _Inputs:
    """What a reader gets, beside the encoder."""

    content: Float[Tensor, "b e d"]
    index: Int[Tensor, "b e"]
    query_index: Int[Tensor, "b t"]
    masks: AttentionMasks

    def ordered(self, content: Tensor, queries: Tensor, num_prefix: int) -> "_Inputs":
        """The same with content and queries in another order."""
        source = torch.cat([torch.arange(num_prefix, device=content.device), content + num_prefix])
        masks = self.masks
        new = AttentionMasks(
            source=None if masks.source is None else masks.source[:, :, source][..., source],
            target=masks.target[:, :, queries][..., queries],
            memory=masks.memory[:, :, queries][..., source],
            feedback=None if masks.feedback is None else masks.feedback[:, :, source][..., queries],
        )
        return _Inputs(self.content[:, content], self.index[:, content], self.query_index[:, queries], new)


@dataclass(frozen=True)
class _Case(Role):
    name = "reader"
    encoder: Any
    mask: Any
    patches: Tensor
    draw: Serialization
    has_positions: bool
    in_order: bool
    tolerance: float

    def _inputs(self, draw: Serialization | None = None) -> _Inputs:
        draw = self.draw if draw is None else draw
        encoded, predicted = draw.windows()
        masks = self.mask(draw, encoded, predicted, self.encoder.num_prefix)
        content = self.encoder.embed(draw.take(self.patches, encoded)).detach()
        return _Inputs(content, draw.order[:, encoded], draw.order[:, predicted], masks)

    def _read(self, given: _Inputs) -> Tensor:
        out: Tensor = self.part(self.encoder, given.content, given.index, given.query_index, given.masks)
        return out

    def _expect(self, expected: str, found: Tensor, wanted: Tensor) -> None:
        self.expect_equal(expected, found, wanted, self.tolerance)

    def output(self) -> None:
        given = self._inputs()
        out = self._read(given)
        self.expect_shape("predictions [B, t, dim]", out, (*given.query_index.shape, self.part.dim), None)
        self.expect_finite("predictions", out)
        self._expect("the same predictions in a second call", self._read(given), out)

    def order_of_queries(self) -> str | None:
        if self.in_order:
            return _IN_ORDER
        given, p = self._inputs(), self.encoder.num_prefix
        straight, order = torch.arange(given.content.shape[1]), torch.arange(given.query_index.shape[1]).flip(0)
        expected = "queries in another order to give the same predictions in that order"
        self._expect(expected, self._read(given.ordered(straight, order, p)), self._read(given)[:, order])
        return None

    def order_of_content(self) -> str | None:
        if self.in_order:
            return _IN_ORDER
        given, p = self._inputs(), self.encoder.num_prefix
        order, straight = torch.arange(given.content.shape[1]).flip(0), torch.arange(given.query_index.shape[1])
        expected = "content in another order to give the same predictions"
        self._expect(expected, self._read(given.ordered(order, straight, p)), self._read(given))
        return None

    @torch.no_grad()
    def what_queries_see(self) -> None:
        given, p = self._inputs(), self.encoder.num_prefix
        before, s = self._read(given), given.masks.memory.shape[-1]
        heard, near = reachable(given.masks)[:, s:, p:s], given.masks.memory[:, 0, :, p:]
        steps = self.draw.step[:, self.draw.windows()[0]]
        for step in torch.unique(steps).tolist():
            changed = steps == step
            shift = noise(given.content.device, *given.content.shape, seed=1, dtype=given.content.dtype)
            after = self._read(replace(given, content=given.content + shift * changed[..., None]))
            moved = (after - before).abs().amax(-1)
            may, must = (heard & changed[:, None]).any(-1), (near & changed[:, None]).any(-1)
            for image, row in (~may & (moved > self.tolerance * moved.max())).nonzero()[:1].tolist():
                self.fail(
                    f"query {row} of image {image} to hear nothing of content of step {step}, which masks hide", "a say"
                )
            for image, row in (must & (moved == 0)).nonzero()[:1].tolist():
                self.fail(f"content of step {step} to have a say in query {row} of image {image}", "none")

    @torch.no_grad()
    def positions_of_queries(self) -> str | None:
        if self.in_order:
            return _IN_ORDER
        given = self._inputs()
        here, there = self._read(given), self._read(replace(given, query_index=given.query_index.roll(1, 1)))
        moved = apart(there, here, self.tolerance)
        if not moved and self.has_positions:
            self.fail("other predictions at other positions (or has_positions=False)", "the same")
        if moved and not self.has_positions:
            self.fail("the same predictions at other positions, since has_positions=False", moved)
        return None

    def windows(self) -> str | None:
        if self.draw.step_sizes is None:
            return "steps differ in size from image to image"
        whole = self._inputs(replace(self.draw, step_sizes=None))
        try:
            full = self._read(whole)
        except ValueError as error:
            return f"refused: {error}"
        predicted = self.draw.windows()[1]
        expected = "the whole sequence under masks to be read as its windows"
        self._expect(expected, full[:, predicted], self._read(self._inputs()))
        return None

    def images_in_a_batch(self) -> None:
        given = self._inputs()
        together = self._read(given)
        for i in range(_BATCH):
            rows = slice(i, i + 1)
            expected = f"image {i} alone to be read as in a batch"
            self._expect(expected, self._read(rows_of(given, rows, _BATCH)), together[rows])

    def no_waits(self) -> None:
        def step(reader: Any, encoder: Any, patches: Tensor, draw: Serialization) -> None:
            case = replace(self, part=reader, encoder=encoder, patches=patches, draw=draw)
            case._read(case._inputs()).sum().backward()  # type: ignore[no-untyped-call]

        check_waits(self, step, self.part, self.encoder, self.patches, self.draw)

    def gradients(self) -> str | None:
        theirs = {id(p) for p in self.encoder.module.parameters()}
        named = self.part.named_parameters() if isinstance(self.part, nn.Module) else ()
        own = {name: p for name, p in named if p.requires_grad and id(p) not in theirs}
        if not own:
            return "the reader has no weights of its own"
        out = self._read(self._inputs())
        total = (out * noise(out.device, *out.shape, seed=2, dtype=out.dtype)).sum()
        self.expect_gradients(
            dict(zip(own, torch.autograd.grad(total, list(own.values()), allow_unused=True), strict=True))
        )
        return None
