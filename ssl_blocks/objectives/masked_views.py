"""One pass of a student over masked views and of its teacher over whole ones, and what objectives make of it.

The parts of iBOT and DINOv2: give them to a `WeightedSum` with ``shared=MaskedViews(...)``.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_blocks.bounds import Classes, Positive, Share
from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import TokenEncoder
from ssl_blocks.encoders.regions import TokenRegions
from ssl_blocks.objectives.heads import check_head
from ssl_blocks.objectives.objective import Objective, beside_zero
from ssl_blocks.objectives.teacher import Center, TeacherSchedule
from ssl_blocks.parts.average import MovingAverage, cosine_momentum
from ssl_blocks.parts.embedding_loss import koleo
from ssl_blocks.parts.gather import gathered
from ssl_blocks.parts.partition import SegmentPartitioner
from ssl_blocks.parts.tokenize import PatchTokenizer
from ssl_blocks.values import ObjectiveOutput, Progress, Views


@checked
@dataclass(frozen=True, eq=False)
class ViewPass:
    """What student and teacher make of views.

    Args:
        views: the student's class tokens of all views, the global ones masked, ``[B, V, D]``.
        tokens: its patch tokens of the global views, ``[B, G, N, D]``.
        teacher_views: the teacher's class tokens of the whole global views, ``[B, G, D]``.
        teacher_tokens: its patch tokens, ``[B, G, N, D]``.
        is_hidden: patches of the global views that the student did not see, ``[B, G, N]``.
    """

    views: Float[Tensor, "b v d"]
    tokens: Float[Tensor, "b g n d"]
    teacher_views: Float[Tensor, "b g d"]
    teacher_tokens: Float[Tensor, "b g n d"]
    is_hidden: Bool[Tensor, "b g n"]


@checked
class MaskedViews(nn.Module):
    """Hide patches of global views from the student, and nothing from its moving average (iBOT, Sec. 3; DINOv2).

    A hidden patch is a mask token in its place. Small crops, if any, are seen whole.

    Args:
        encoder: a token encoder with a class token.
        partitioner: id 0 is what stays visible.
        momentum: of the teacher in the first step; it rises to 1 along half a cosine.
        share: of global views in which anything is hidden at all.

    Raises:
        ValueError: if the encoder has no prefix token, or the share lies outside [0, 1].
    """

    def __init__(
        self, encoder: TokenEncoder, partitioner: SegmentPartitioner, *, momentum: Share = 0.996, share: Share = 0.5
    ) -> None:
        super().__init__()
        if not encoder.num_prefix:
            raise ValueError("encoder must have a class token, which speaks for the view, got num_prefix=0")
        self.encoder, self.partitioner, self.share = encoder, partitioner, share
        self.teacher = MovingAverage(encoder, cosine_momentum(momentum))  # type: ignore[arg-type]
        self.mask_token = nn.Parameter(torch.randn(1, 1, encoder.dim) * 0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare."""
        return {"mask_token"}

    def draw(self, images: Views, *, generator: torch.Generator | None = None) -> Bool[Tensor, "b g n"]:
        """Draw what is hidden of every global view."""
        hidden = []
        for view in images.images[: images.num_global]:
            ids = self.partitioner(view, self.encoder.grid, generator=generator).levels[0]
            chosen = torch.rand(len(view), 1, generator=generator, device=view.device) < self.share
            hidden.append((ids > 0) & chosen)
        return torch.stack(hidden, dim=1)

    def forward(self, images: Views, draw: Bool[Tensor, "b g n"]) -> ViewPass:
        """Run the student over all views, and the teacher over the global ones."""
        large = images.images[: images.num_global]
        teacher = self.taught(images)
        student = [
            _states(self.encoder, view, hidden, self.mask_token)
            for view, hidden in zip(large, draw.unbind(1), strict=True)
        ]
        small = [TokenRegions(self.encoder).regions(view).pooled for view in images.images[images.num_global :]]
        prefix = self.encoder.num_prefix
        return ViewPass(
            views=torch.stack([*(x[:, 0] for x in student), *small], dim=1),
            tokens=torch.stack([x[:, prefix:] for x in student], dim=1),
            teacher_views=teacher[:, :, 0],
            teacher_tokens=teacher[:, :, prefix:],
            is_hidden=draw,
        )

    @torch.no_grad()
    def taught(self, images: Views) -> Float[Tensor, "b g s d"]:
        """What the teacher makes of whole global views, prefix first, ``[B, G, P+N, D]``."""
        large = images.images[: images.num_global]
        return torch.stack([_states(self.teacher.copy, view, None, None) for view in large], 1)  # type: ignore[arg-type]


def _states(encoder: TokenEncoder, view: Tensor, hidden: Tensor | None, token: Tensor | None) -> Tensor:
    tokens = encoder.embed(view)
    if hidden is not None and token is not None:
        tokens = torch.where(hidden[..., None], token.to(tokens.dtype), tokens)
    index = torch.arange(encoder.grid.num_tokens, device=view.device).expand(len(view), -1)
    return encoder.encode(tokens, index, None).final


def _given(shared: ViewPass | None) -> ViewPass:
    if shared is None:
        raise ValueError("shared=None must be the pass of MaskedViews: put the objective into WeightedSum(shared=...)")
    return shared


@checked
class _ReadsViews(Objective):
    """Reads the shared pass, and leaves the teacher's encoder behind."""

    takes_views = True
    reads_shared = True

    def __init__(self, views: MaskedViews) -> None:
        super().__init__()
        self._views = (views,)  # registered once, by the sum
        self.encoder = views.encoder

    def draw(self, images: Views, *, generator: torch.Generator | None = None) -> None:
        """Draw nothing: the shared pass does."""

    def export_encoder(self) -> TokenEncoder:
        """The teacher's encoder."""
        encoder: TokenEncoder = self._views[0].teacher.copy  # type: ignore[assignment]
        return encoder


@checked
class _Distilled(_ReadsViews):
    """A head, its moving average, and a centred and sharpened teacher."""

    teacher_temperature: Tensor

    def __init__(
        self,
        views: MaskedViews,
        head: nn.Module,
        out_dim: Classes,
        *,
        schedule: TeacherSchedule | None = None,
        student_temperature: Positive = 0.1,
        center_momentum: Share = 0.9,
    ) -> None:
        super().__init__(views)
        check_head(head, dim=views.encoder.dim, out_dim=out_dim)
        self.schedule = TeacherSchedule() if schedule is None else schedule
        self.head, self.student_temperature = head, student_temperature
        self.teacher_head = MovingAverage(head, cosine_momentum(self.schedule.momentum))
        self.center = Center(out_dim, center_momentum)
        self.register_buffer("teacher_temperature", torch.tensor(self.schedule.temperature_at(0)), persistent=False)

    def before_step(self, progress: Progress) -> None:
        """Set the teacher's temperature."""
        super().before_step(progress)
        self.teacher_temperature.fill_(self.schedule.temperature_at(progress.epoch))

    def _logits(self, student: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        logits: Tensor = self.head(student.flatten(0, -2)).float() / self.student_temperature
        return logits.reshape(*student.shape[:-1], -1)

    @torch.no_grad()
    def _wanted(self, teacher: Float[Tensor, "*b d"], *, note: bool) -> Float[Tensor, "*b k"]:
        logits: Tensor = self.teacher_head.copy(teacher.flatten(0, -2)).float()
        if note:
            self.center.note(logits)
        sharpened = ((logits - self.center.value) / self.teacher_temperature).softmax(-1)
        return sharpened.reshape(*teacher.shape[:-1], -1)


def _entropies(logits: Float[Tensor, "*b k"], wanted: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    entropies: Tensor = -(wanted * logits.log_softmax(-1)).sum(-1)
    return entropies


@checked
class DistilledViews(_Distilled):
    """Say of every view what the teacher says of another, global one: DINO on a shared pass (DINOv2, Sec. 4).

    Args:
        views: the shared pass.
        head: from class tokens to logits, such as `dino_head`.
        out_dim: number of classes, ``K``.
        schedule: temperature and momentum of the teacher's head.
        student_temperature: of the student's softmax.
        center_momentum: of the centre.
    """

    def forward(self, images: Views, draw: None = None, *, shared: ViewPass | None = None) -> ObjectiveOutput:
        """Return a row per pair of views: its cross-entropy, beside 0."""
        shared = _given(shared)
        wanted = self._wanted(shared.teacher_views, note=self.training)
        pairs = [(v, q) for q in range(wanted.shape[1]) for v in range(shared.views.shape[1]) if v != q]
        if not pairs:
            raise ValueError("images must be Views of at least two crops: a view is never compared with itself")
        ours = torch.stack([shared.views[:, v] for v, _ in pairs], dim=1)
        rows = _entropies(self._logits(ours), torch.stack([wanted[:, q] for _, q in pairs], dim=1))
        return beside_zero(rows.mean(), rows[..., None])


@checked
class DistilledTokens(_Distilled):
    """Say of every hidden patch what the teacher, who sees it, says of it: iBOT on a shared pass (iBOT, Sec. 3.2).

    Rows are patches, view after view, so that `assert_no_leak` tells whether the student sees what is hidden.

    Args:
        views: the shared pass.
        head: from patch tokens to logits; iBOT shares it with `DistilledViews`, DINOv2 does not.
        out_dim: number of classes, ``K``; this and all else as for `DistilledViews`.
    """

    @cached_property
    def tokenizer(self) -> PatchTokenizer:  # type: ignore[override]
        """Cuts global views into the encoder's patches."""
        encoder = self._views[0].encoder
        size = tuple(cells * pixels for cells, pixels in zip(encoder.grid.sizes, encoder.patch, strict=True))
        return PatchTokenizer(image_size=size, patch_size=encoder.patch, channels=encoder.channels)

    def target(self, images: Views) -> Float[Tensor, "b n k"]:
        """What the teacher says of every patch of the global views, view after view, ``[B, G*N, K]``."""
        views = self._views[0]
        taught = views.taught(images)[:, :, views.encoder.num_prefix :]
        return self._wanted(taught, note=False).flatten(1, 2)

    def forward(self, images: Views, draw: None = None, *, shared: ViewPass | None = None) -> ObjectiveOutput:
        """Return a row per patch of a global view: its logits, beside the teacher's classes; hidden ones count."""
        shared = _given(shared)
        logits = self._logits(shared.tokens).flatten(1, 2)
        wanted = self._wanted(shared.teacher_tokens, note=self.training).flatten(1, 2)
        hidden = shared.is_hidden.flatten(1)
        rows = _entropies(logits, wanted)
        loss = torch.where(hidden, rows, 0.0).sum() / hidden.sum().clamp(min=1)
        return replace(beside_zero(loss, logits), targets=wanted, is_target=hidden)


@checked
class SpreadViews(_ReadsViews):
    """Keep the images of a batch apart: KoLeo on the student's class tokens of a shared pass (DINOv2, Sec. 4).

    Distances are taken within each global view, over the images of all processes.
    """

    per_part = True

    def forward(self, images: Views, draw: None = None, *, shared: ViewPass | None = None) -> ObjectiveOutput:
        """Return a row per global view: the loss of its class tokens, beside 0."""
        large = gathered(_given(shared).views[:, : images.num_global])
        losses = torch.stack([koleo(view) for view in large.unbind(1)])
        return beside_zero(losses.mean(), losses.detach()[:, None].expand(images.batch, -1, -1))
