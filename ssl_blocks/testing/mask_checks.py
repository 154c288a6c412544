"""A check for mask builders: what is predicted never reaches a query, through any number of layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from ssl_blocks.parts.mask import MaskBuilder
from ssl_blocks.parts.read import joint_mask
from ssl_blocks.parts.serialize import OrderedSerializer
from ssl_blocks.testing.draw_checks import some_segments
from ssl_blocks.testing.role_case import Role, RoleReport, mapped, same
from ssl_blocks.testing.waits import check_waits
from ssl_blocks.values import AttentionMasks, Serialization

_PREFIXES = (0, 2)
_SIDES = {  # rows and columns of masks
    "source": ("content", "content"),
    "target": ("queries", "queries"),
    "memory": ("queries", "content"),
    "feedback": ("content", "queries"),
}


def check_mask_builder(mask: MaskBuilder, *, serializations: Sequence[Serialization] | None = None) -> RoleReport:
    """Prove that a mask builder keeps the promises of ``MaskBuilder``.

    Masks are bool and have room for prefix, content and queries. Through any number of layers no query that is
    predicted reaches content of its own or a later step, whether by content, by prefix tokens or by other queries; some
    query sees something. Where steps have the same size in every image, masks of the whole sequence say the same as
    those of its windows, and what the windows leave out has no say. Rows that see nothing are allowed, and so is a
    ``ValueError`` for some serializations, or for ``predict_first``.

    Which steps are predicted is the builder's ``num_given`` (1 where it has none), as for `SegmentPrediction`.

    Args:
        mask: the mask builder.
        serializations: what masks are built for; by default tokens one by one, squares, subsets and blobs.

    Examples:
        >>> from ssl_blocks import SegmentCausalMask
        >>> check_mask_builder(SegmentCausalMask()).passed
        ('masks', 'what queries see', 'windows', 'predict first')
    """
    if serializations is None:
        serializations = [OrderedSerializer()(segments) for segments in some_segments()]
    cases = [_Case(mask, draw, prefix) for draw in serializations for prefix in _PREFIXES]
    cases = [case for case in cases if not case.refused()]
    checks = _Checks(mask, cases)
    if not cases:
        checks.fail("masks for some serialization", "a ValueError for each")
    return checks.run()


def reachable(masks: AttentionMasks) -> Bool[Tensor, "_ s s"]:
    """Who hears of whom through any number of layers: prefix and content first, then queries."""
    near = joint_mask(masks)[:, 0]
    near = near | torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
    for _ in range(near.shape[-1].bit_length()):
        near = (near.float() @ near.float()) > 0
    return near


@dataclass(frozen=True)
class _Case(Role):
    """A serialization of which masks are built."""

    name = "mask builder"
    draw: Serialization
    num_prefix: int
    predict_first: bool = False

    @property
    def where(self) -> str:
        sizes = self.draw.step_sizes
        kind = "steps of other sizes in every image" if sizes is None else f"steps of sizes {sizes}"
        return f"(num_prefix={self.num_prefix}, predict_first={self.predict_first}, {kind})"

    def build(self, draw: Serialization | None = None) -> Any:
        draw = self.draw if draw is None else draw
        return self.part(draw, *draw.windows(self.predict_first), self.num_prefix, self.predict_first)

    def refused(self) -> str | None:
        try:
            self.build()
        except ValueError as error:
            return str(error)
        return None

    def check_shapes(self) -> None:
        masks, (encoded, predicted) = self.build(), self.draw.windows(self.predict_first)
        if not isinstance(masks, AttentionMasks):
            self.fail("AttentionMasks", type(masks).__name__)
        lengths = {"content": self.num_prefix + encoded.stop - encoded.start}
        lengths["queries"] = predicted.stop - predicted.start
        for name, sides in _SIDES.items():
            found, (rows, columns) = getattr(masks, name), (lengths[side] for side in sides)
            if found is None and name in ("source", "feedback"):
                continue
            leading = found.shape[0] if isinstance(found, Tensor) and found.ndim else 0
            leading = leading if leading in (1, len(self.draw.order)) else 1
            self.expect_shape(f"masks.{name} {self.where}", found, (leading, 1, rows, columns), torch.bool)
        if not same(masks, self.build()):
            self.fail("the same masks in a second call", "others")
        meta = torch.device("meta")
        self.expect_device("masks", self.build(mapped(self.draw, lambda x: x.to(meta))), meta)
        check_waits(self, self.build, self.draw)

    def check_seen(self) -> bool:
        """Whether some query that is predicted sees content."""
        masks, (encoded, predicted) = self.build(), self.draw.windows(self.predict_first)
        content, asked = self.draw.step[:, None, encoded], self.draw.step[:, predicted, None]
        first = 0 if self.predict_first else getattr(self.part, "num_given", 1)
        counts = asked >= first
        s = self.num_prefix + content.shape[-1]
        heard = reachable(masks)[:, s:, self.num_prefix : s] & counts
        for image, query, slot in (heard & (content >= asked)).nonzero()[:1].tolist():
            step, other = int(asked[image, query, 0]), int(content[image, 0, slot])
            self.fail(
                f"no query to hear of content of its own or a later step {self.where}",
                f"a query of step {step} in image {image} that hears of content of step {other}, maybe by others",
            )
        return bool(heard.any())

    def check_windows(self) -> None:
        if self.draw.step_sizes is None:
            return
        whole, n, p = self.build(replace(self.draw, step_sizes=None)), self.draw.num_tokens, self.num_prefix
        encoded, predicted = self.draw.windows(self.predict_first)
        kept = {"content": _places(encoded, n, p), "queries": _places(predicted, n, 0)}
        part = self.build()
        for name, (rows, columns) in _SIDES.items():
            full, cut = getattr(whole, name), getattr(part, name)
            unsaid = name == "source"  # what no mask at all stands for
            if full is None:
                full = torch.full((1, 1, len(kept[rows]), len(kept[columns])), unsaid)
            inside = full[..., kept[rows], :]
            if bool(inside[..., ~kept[columns]].any()):
                self.fail(
                    f"what the windows leave out to be seen by nothing that they keep {self.where}",
                    f"masks.{name} of the whole sequence that lets it be seen",
                )
            inside = inside[..., kept[columns]]
            cut = torch.full_like(inside, unsaid) if cut is None else cut
            if not torch.equal(inside, cut.expand_as(inside)):
                self.fail(f"masks.{name} of the whole sequence as of its windows {self.where}", "another one")


def _places(window: slice, num_tokens: int, num_prefix: int) -> Bool[Tensor, " s"]:
    inside = torch.zeros(num_tokens, dtype=torch.bool)
    inside[window] = True
    return F.pad(inside, (num_prefix, 0), value=True)


@dataclass(frozen=True)
class _Checks(Role):
    name = "mask builder"
    cases: Sequence[_Case]

    def masks(self) -> None:
        for case in self.cases:
            case.check_shapes()

    def what_queries_see(self) -> None:
        found = [case.check_seen() for case in self.cases]  # of all of them
        if not any(found):
            self.fail("some query to see some content", "none that does")

    def windows(self) -> str | None:
        fixed = [case for case in self.cases if case.draw.step_sizes is not None]
        for case in fixed:
            case.check_windows()
        return None if fixed else "no serialization has steps of the same size in every image"

    def predict_first(self) -> str | None:
        for case in [replace(case, predict_first=True) for case in self.cases if case.num_prefix]:
            reason = case.refused()
            if reason:
                return f"refused: {reason}"
            case.check_shapes()
            case.check_seen()
            case.check_windows()
        return None
