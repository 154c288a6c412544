"""Self-distillation between views of an image, of whole views and of their regions: DINO and EsViT."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Classes, NotNegative, Positive, Share, Whole
from ssl_blocks.constants import constant
from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import AnyRegionEncoder, RegionEncoder
from ssl_blocks.objectives.heads import LastLayerGate, check_head, dino_head
from ssl_blocks.objectives.objective import Objective, beside_zero
from ssl_blocks.objectives.teacher import Center, TeacherSchedule
from ssl_blocks.parts.average import MovingAverage, cosine_momentum
from ssl_blocks.parts.embedding_loss import koleo
from ssl_blocks.parts.gather import gathered
from ssl_blocks.parts.region_loss import Pairs, all_matches, compare_pairs, same_images, view_pairs
from ssl_blocks.values import ObjectiveOutput, Progress, Views


@checked
class ViewRegionDistillation(Objective):
    """Teach a student to say of every view what its own moving average says of another, large view.

    DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers") for whole views; EsViT (Li et al.,
    "Efficient Self-supervised Vision Transformers for Representation Learning", Sec. 3) also for regions, each matched
    with the most similar region of the teacher's view by the cosine of backbone features. Heads turn features into
    logits; the teacher's are centred by a moving average of their own and sharpened, and the student's cross-entropy
    with them is averaged over images and over all pairs of a teacher's view and another view.

    EsViT's paper adds the losses of views and regions; its code, and this objective by default, halve both.

    The teacher sees global views only. It has no dropout and no drop path; its batch norms, if any, see batches of
    their own. Gradients never reach it. The exported encoder is the teacher's, which is what DINO and EsViT evaluate.

    Args:
        encoder: any region encoder; the teacher is a copy.
        out_dim: number of classes of the heads, ``K``.
        head: builds a head for features of a width and logits of a number: ``head(dim, out_dim)``. `dino_head` by
            default; it is called once for every head of student and teacher.
        region_weight: share of the region loss; 0 is DINO, and there are no heads for regions then.
        koleo_weight: of `koleo`, added to the loss: it keeps the student's features of different images apart, in each
            global view, over the images of all processes (DINOv2, Sec. 4, with 0.1). Rows do not hold it.
        student_temperature: of the student's softmax.
        schedule: temperature and momentum of the teacher.
        center_momentum: of the centres.
        freeze_epochs: epochs in which the last layer of `dino_head` stands still.

    Raises:
        TypeError: if the encoder has no regions.
        ValueError: if a number is out of range.

    Examples:
        >>> from functools import partial
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_regions("resnet10t", image_size=64)
        >>> head = partial(sb.dino_head, hidden_dim=32, bottleneck_dim=16)
        >>> objective = ViewRegionDistillation(encoder=encoder, out_dim=64, head=head)
        >>> views = sb.Views((*torch.rand(2, 4, 3, 64, 64), torch.rand(4, 3, 32, 32)), num_global=2)
        >>> objective(views).predictions.shape  # four pairs of views
        torch.Size([4, 4, 1])
    """

    tokenizer = None
    takes_views = True
    student: "_Student"
    teacher_temperature: Tensor

    def __init__(
        self,
        *,
        encoder: AnyRegionEncoder,
        out_dim: Classes = 65_536,
        head: Callable[[int, int], nn.Module] = dino_head,
        region_weight: Share = 0.5,
        koleo_weight: NotNegative = 0.0,
        student_temperature: Positive = 0.1,
        schedule: TeacherSchedule | None = None,
        center_momentum: Share = 0.9,
        freeze_epochs: Whole = 1,
    ) -> None:
        super().__init__()
        self.region_weight, self.student_temperature = region_weight, student_temperature
        self.koleo_weight, self.per_part = koleo_weight, koleo_weight > 0
        self.schedule = TeacherSchedule() if schedule is None else schedule
        view_head = head(encoder.dim, out_dim)
        self.student = _Student(encoder, view_head, head(encoder.dim, out_dim) if region_weight else None)
        for made in filter(None, (view_head, self.student.region_head)):
            check_head(made, dim=encoder.dim, out_dim=out_dim)
        for part in self.student.modules():
            if isinstance(part, LastLayerGate):
                part.closed_epochs = freeze_epochs
        self.teacher = MovingAverage(self.student, cosine_momentum(self.schedule.momentum))
        self.center = Center(out_dim, center_momentum)
        self.region_center = Center(out_dim, center_momentum) if region_weight else None
        self.register_buffer("teacher_temperature", torch.tensor(self.schedule.temperature_at(0)), persistent=False)

    @property
    def encoder(self) -> RegionEncoder:  # type: ignore[override]
        """The student's encoder."""
        return self.student.encoder

    def draw(self, images: Views | Float[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> None:
        """Draw nothing: views are made before."""

    def forward(self, images: Views | Float[Tensor, "b c h w"], draw: None = None) -> ObjectiveOutput:
        """Compare every view with every other, global one.

        Args:
            images: the views; of each image at least one other than a global one.
            draw: nothing.

        Returns:
            A row per pair of a teacher's view (``step``) and a student's (``index``), which holds its loss, beside 0.

        Raises:
            ValueError: if there is no pair of views, or the encoder refuses a view's size.
        """
        views = images if isinstance(images, Views) else Views((images,), num_global=1)
        if len(views.images) < 2:
            raise ValueError(
                "images must be Views of at least two crops, got a single one: a view is never compared with itself"
            )
        pairs = view_pairs(views.num_global, len(views.images))
        with torch.no_grad():
            teacher = self.teacher.copy(views.images[: views.num_global])
        student = self.student(views.images)
        if self.training and torch.is_grad_enabled():
            self.center.note(teacher.views)
            if self.region_center is not None:
                self.region_center.note(teacher.regions)
        loss, of_views, metrics = self._compare_views(student, teacher, pairs)
        rows = (1 - self.region_weight) * of_views
        if self.region_center is not None:
            match, sizes = all_matches(student.maps, teacher.maps), [features.shape[1] for features in student.maps]
            options = self._options(student.regions, self.region_center)
            region_loss, of_regions = compare_pairs(
                student.regions, teacher.regions, match, sizes, pairs, self.region_weight, **options
            )
            loss, rows = loss + region_loss, rows + self.region_weight * of_regions
        if self.koleo_weight:
            large = gathered(torch.stack(student.pooled.chunk(len(views.images))[: views.num_global], dim=1))
            near = torch.stack([koleo(view) for view in large.unbind(1)]).mean()
            loss, metrics["koleo"] = loss + self.koleo_weight * near, near.detach()
        step, index = (constant(numbers, like=rows, dtype=torch.int64) for numbers in zip(*pairs, strict=True))
        out = beside_zero(loss, rows[..., None], metrics=metrics)
        return replace(out, index=index.expand(views.batch, -1), step=step.expand(views.batch, -1))

    def _compare_views(
        self, student: "_Look", teacher: "_Look", pairs: Pairs
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, its value of every pair ``[B, pairs]``, and what tells of a collapse."""
        batch, num_global = student.batch, len(teacher.maps)
        match = same_images(batch, num_global, len(student.maps), student.views.device)
        ones, weight = [1] * len(student.maps), 1 - self.region_weight
        options = self._options(student.views, self.center)
        loss, of_pairs = compare_pairs(student.views, teacher.views, match, ones, pairs, weight, **options)
        with torch.no_grad():
            logits = teacher.views.to(of_pairs.dtype)
            wanted = ((logits - self.center.value) / self.teacher_temperature).softmax(1)
            entropy = -torch.xlogy(wanted, wanted).sum(1).mean()
            unit = nn.functional.normalize(teacher.pooled.to(of_pairs.dtype), dim=-1)
            spread = unit.view(num_global, batch, -1).std(1, correction=0).mean() * self.encoder.dim**0.5
        metrics = {"teacher_entropy": entropy, "teacher_kl": of_pairs.mean() - entropy, "feature_spread": spread}
        return loss, of_pairs, metrics

    def _options(self, student: Tensor, center: Center) -> dict[str, Any]:
        """What `compare_pairs` passes on."""
        heat = {"student_temperature": self.student_temperature, "teacher_temperature": self.teacher_temperature}
        return {"center": center.value, "overwrite": _made_by_a_product(student), **heat}

    def before_step(self, progress: Progress) -> None:
        """Set the teacher's temperature."""
        super().before_step(progress)
        self.teacher_temperature.fill_(self.schedule.temperature_at(progress.epoch))

    def export_encoder(self) -> RegionEncoder:
        """The teacher's encoder."""
        encoder: RegionEncoder = self.teacher.copy.encoder  # type: ignore[assignment]
        return encoder


@dataclass(frozen=True, eq=False)
class _Look:
    """What a network makes of views: features of regions per view, and logits of all of them, view after view."""

    batch: int
    maps: list[Tensor]
    pooled: Tensor
    views: Tensor
    regions: Any  # ``None`` where there is no head for them


class _Student(nn.Module):
    """Encoder and heads; the teacher is a moving average of it."""

    encoder: RegionEncoder

    def __init__(self, encoder: RegionEncoder, view_head: nn.Module, region_head: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.view_head, self.region_head = encoder, view_head, region_head

    def forward(self, images: tuple[Tensor, ...]) -> _Look:
        maps: list[Tensor] = []
        pooled: list[Tensor] = []
        for _, group in groupby(images, key=lambda view: view.shape):
            same = list(group)
            found = self.encoder.regions(torch.cat(same))
            maps += found.map.chunk(len(same))
            pooled.append(found.pooled)
        joined = torch.cat(pooled)
        head = self.region_head
        regions = None if head is None else head(torch.cat([features.flatten(0, 1) for features in maps]))
        return _Look(len(images[0]), maps, joined, self.view_head(joined), regions)


def _made_by_a_product(logits: Tensor) -> bool:
    """Whether the head ends in a matrix product, whose gradient does not need what it gave."""
    return not torch.compiler.is_compiling() and type(logits.grad_fn).__name__ in ("MmBackward0", "AddmmBackward0")
