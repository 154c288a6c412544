"""Cross-entropy between teacher and student distributions of very many classes, with the gradient made in passing."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# values of a chunk: on a CPU a few of them should stay in the cache, an accelerator wants large ones
CHUNK_CPU, CHUNK_ACCELERATOR = 1 << 18, 1 << 25


@dataclass(frozen=True)
class Pairing:
    """Which rows of a student's view are compared with which views of the teacher.

    Args:
        start: first row of the view.
        stop: the row after its last.
        teachers: numbers of the teacher's views, columns of ``match``.
        weight: of each row and teacher view in the loss.
    """

    start: int
    stop: int
    teachers: tuple[int, ...]
    weight: float


def match_regions(student: Float[Tensor, "b r d"], teacher: Float[Tensor, "b s d"]) -> Int[Tensor, "b r"]:
    """Find for every region of one view the most similar one of another, by cosine.

    EsViT, Sec. 3. Computed in single precision at least, without gradient.

    Args:
        student: features of regions ``[B, R, D]``, of the backbone and not of a head.
        teacher: the same of another view of the images, ``[B, S, D]``.

    Returns:
        ``[B, R]`` places among the teacher's regions.

    Examples:
        >>> teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> match_regions(torch.tensor([[[0.1, 0.9], [5.0, 4.0]]]), teacher)
        tensor([[1, 0]])
    """
    # the meta device knows no autocast
    plain = nullcontext() if student.is_meta else torch.autocast(student.device.type, enabled=False)
    with torch.no_grad(), plain:
        ours, theirs = (_unit(x.detach()) for x in (student, teacher))
        return (ours @ theirs.transpose(1, 2)).argmax(2)


def _unit(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.nn.functional.normalize(wide, dim=-1)


def paired_cross_entropy(
    student: Float[Tensor, "n k"],
    teacher: Float[Tensor, "m k"],
    center: Float[Tensor, " k"],
    match: Int[Tensor, "n g"],
    pairings: tuple[Pairing, ...],
    *,
    student_temperature: float,
    teacher_temperature: Float[Tensor, ""] | float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n g"]]:
    """Weighted sum of the cross-entropies of student rows with the teacher rows that match them.

    The cross-entropy of ``p = softmax((t - center) / T_t)`` with ``log_softmax(s / T_s)`` is
    ``logsumexp(s / T_s) - p · s / T_s``, and its gradient ``(softmax(s / T_s) - p) / T_s``. Both are computed together,
    in single precision at least and in chunks of rows that stay in the cache, so that no table of probabilities is
    ever held: what is kept is one gradient of the size and type of the student's logits. The backward pass scales it
    in place, so it can run only once. No gradient reaches teacher or centre.

    Args:
        student: logits ``[n, K]``, view after view.
        teacher: logits ``[m, K]`` of all its views.
        center: subtracted from the teacher's logits, ``[K]``.
        match: for each student row and teacher view the teacher's row, ``[n, G]``; what no pairing names is ignored.
        pairings: which rows are compared with which teacher views, and their weight.
        student_temperature: ``T_s``.
        teacher_temperature: ``T_t``.

    Returns:
        The weighted sum; and every single cross-entropy ``[n, G]`` without gradient, 0 where there is no pair.
    """
    loss, entropies = _PairedCrossEntropy.apply(
        student, teacher, center, match, pairings, student_temperature, teacher_temperature
    )
    return loss, entropies


class _PairedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        center: Tensor,
        match: Tensor,
        pairings: tuple[Pairing, ...],
        student_temperature: float,
        teacher_temperature: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(student.dtype, torch.float32)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        entropies = torch.zeros(match.shape, dtype=dtype, device=student.device)
        loss = torch.zeros((), dtype=dtype, device=student.device)
        size = CHUNK_CPU if student.device.type == "cpu" else CHUNK_ACCELERATOR
        step = max(1, size // student.shape[1])
        for pairing in pairings:
            for start in range(pairing.start, pairing.stop, step):
                rows = slice(start, min(start + step, pairing.stop))
                scaled = student[rows].to(dtype) / student_temperature
                total = scaled.logsumexp(1)
                slope = None
                if gradient is not None:
                    slope = (scaled - total[:, None]).exp_().mul_(len(pairing.teachers))
                for view in pairing.teachers:
                    probabilities = teacher[match[rows, view]].to(dtype).sub_(center).div_(teacher_temperature)
                    probabilities = probabilities.softmax(1)
                    entropies[rows, view] = total - (probabilities * scaled).sum(1)
                    if slope is not None:
                        slope.sub_(probabilities)
                if gradient is not None and slope is not None:
                    gradient[rows] = slope.mul_(pairing.weight / student_temperature)
            for view in pairing.teachers:
                loss = loss + pairing.weight * entropies[pairing.start : pairing.stop, view].sum()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return loss, entropies

    @staticmethod
    def backward(ctx: Any, *outgoing: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outgoing[0]), None, None, None, None, None, None
