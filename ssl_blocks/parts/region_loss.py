"""Cross-entropy between teacher and student distributions of very many classes, with the gradient made in passing."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_blocks.bounds import Count, NotNegative, Positive, Whole
from ssl_blocks.doors import checked

# bytes of all that a chunk of rows needs: on a CPU it should stay in the cache, an accelerator wants large ones
CHUNK_BYTES_CPU, CHUNK_BYTES_ACCELERATOR = 4 << 20, 64 << 20
BUFFERS = 4  # of a chunk's size that live at once: logits, slope, probabilities, and what an operation makes in passing


@checked
@dataclass(frozen=True)
class Pairing:
    """Which rows of a student's view are compared with which views of the teacher.

    Args:
        start: first row of the view.
        stop: the row after its last.
        teachers: numbers of the teacher's views, columns of ``match``.
        weight: of each row and teacher view in the loss.
    """

    start: Whole
    stop: Count
    teachers: tuple[Whole, ...]
    weight: NotNegative


@checked
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
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        ours, theirs = (_unit(x.detach().to(dtype)) for x in (student, teacher))
        return (ours @ theirs.transpose(1, 2)).argmax(2)


def _unit(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.nn.functional.normalize(wide, dim=-1)


@checked
def paired_cross_entropy(
    student: Float[Tensor, "n k"],
    teacher: Float[Tensor, "m k"],
    center: Float[Tensor, " k"],
    match: Int[Tensor, "n g"],
    pairings: tuple[Pairing, ...],
    *,
    student_temperature: Positive,
    teacher_temperature: Float[Tensor, ""] | float,
    overwrite: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n g"]]:
    """Weighted sum of the cross-entropies of student rows with the teacher rows that match them.

    The cross-entropy of ``p = softmax((t - center) / T_t)`` with ``log_softmax(s / T_s)`` is
    ``logsumexp(s / T_s) - p · s / T_s``, and its gradient ``(softmax(s / T_s) - p) / T_s``. Both are computed together,
    in single precision at least and in chunks of rows of a fixed number of bytes, so that no table of probabilities is
    ever held: what is kept is one gradient of the size and type of the student's logits. With ``overwrite`` it takes
    the place of the logits, and nothing is kept besides. The backward pass scales it in place, so it can run only once,
    and there is no second derivative. No gradient reaches teacher or centre.

    Args:
        student: logits ``[n, K]``, view after view.
        teacher: logits ``[m, K]`` of all its views.
        center: subtracted from the teacher's logits, ``[K]``.
        match: for each student row and teacher view the teacher's row, ``[n, G]``; what no pairing names is ignored.
        pairings: which rows are compared with which teacher views, and their weight; they name every row once.
        student_temperature: ``T_s``.
        teacher_temperature: ``T_t``.
        overwrite: write the gradient into ``student``, whose values are lost wherever a gradient is asked for; not
            while a pass is compiled. Another operation that needs the logits for its own gradient refuses to go on.

    Returns:
        The weighted sum; and every single cross-entropy ``[n, G]`` without gradient, 0 where there is no pair.
    """
    overwrite = overwrite and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    loss, entropies = _PairedCrossEntropy.apply(
        student, teacher, center, match, pairings, student_temperature, teacher_temperature, overwrite
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
        overwrite: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(student.dtype, torch.float32)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = student.detach() if overwrite else torch.empty_like(student)
        entropies = torch.zeros(match.shape, dtype=dtype, device=student.device)
        loss = torch.zeros((), dtype=dtype, device=student.device)
        step = _rows_of_a_chunk(student, dtype)
        for pairing in pairings:
            for start in range(pairing.start, pairing.stop, step):
                rows = slice(start, min(start + step, pairing.stop))
                scaled = student[rows].to(dtype) / student_temperature
                slope = scaled.softmax(1)
                # one pass of exponentials serves for both: the largest probability is exp(0) over their sum
                total = scaled.amax(1) - slope.amax(1).log()
                slope.mul_(len(pairing.teachers))
                for view in pairing.teachers:
                    wanted = teacher.index_select(0, match[rows, view]).to(dtype).sub_(center)
                    wanted = wanted.div_(teacher_temperature).softmax(1)
                    slope.sub_(wanted)
                    entropies[rows, view] = total - wanted.mul_(scaled).sum(1)
                if gradient is not None:
                    gradient[rows] = slope.mul_(pairing.weight / student_temperature)
            for view in pairing.teachers:
                loss = loss + pairing.weight * entropies[pairing.start : pairing.stop, view].sum()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return loss, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outgoing: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outgoing[0]), *(None,) * 7


def _rows_of_a_chunk(logits: Tensor, dtype: torch.dtype) -> int:
    """As many as a chunk's bytes hold, in the precision that is computed in."""
    size = CHUNK_BYTES_CPU if logits.device.type == "cpu" else CHUNK_BYTES_ACCELERATOR
    return max(1, size // (BUFFERS * logits.shape[1] * dtype.itemsize))
