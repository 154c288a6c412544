"""Cross-entropy between teacher and student distributions of very many classes, with the gradient made in passing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_blocks.bounds import Count, NotNegative, Positive, Whole
from ssl_blocks.doors import checked
from ssl_blocks.modes import full_precision

# bytes of all that a chunk of rows needs: on a CPU it should stay in the cache, an accelerator wants large ones
CHUNK_BYTES_CPU, CHUNK_BYTES_ACCELERATOR = 4 << 20, 96 << 20
Pairs = list[tuple[int, int]]  # numbers of a view of the teacher and one of the student
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
    with torch.no_grad(), full_precision(student):
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


@checked
def view_cross_entropy(
    student: Sequence[Float[Tensor, "b _ k"]],
    teacher: Sequence[Float[Tensor, "b _ k"]],
    center: Float[Tensor, " k"],
    *,
    features: tuple[Sequence[Float[Tensor, "b _ d"]], Sequence[Float[Tensor, "b _ d"]]] | None = None,
    student_temperature: Positive = 0.1,
    teacher_temperature: Float[Tensor, ""] | Positive = 0.04,
) -> tuple[Float[Tensor, ""], Float[Tensor, "b pairs"]]:
    """The loss of DINO and EsViT: what a student says of every view, beside what a teacher says of another one.

    Views are compared where ``features`` are ``None``: logits ``[B, 1, K]``. With features regions are, each with the
    most similar one of the teacher's view (`match_regions`; EsViT, Sec. 3). EsViT's loss is half of the one and half of
    the other, each with heads and a centre of its own; its paper adds them. `ViewRegionDistillation` is both, with
    encoder, heads, teacher and centres.

    Args:
        student: logits ``[B, R, K]`` of every view, the teacher's first; views may differ in their number of regions.
        teacher: logits ``[B, S, K]`` of its views, the first ones of the student's.
        center: subtracted from the teacher's logits, ``[K]``.
        features: of the regions ``[B, R, D]`` and ``[B, S, D]``, of the backbones and not of heads.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's.

    Returns:
        The mean over images and pairs of a teacher's view and another one; and what it is the mean of, ``[B, pairs]``,
        without gradient, a teacher's view after the other, for each the student's in order.

    Raises:
        ValueError: if there is no pair, or views have several regions and there are no features to match them by.

    Examples:
        >>> logits = [torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2, 1, 8)]
        >>> loss, rows = view_cross_entropy(logits, logits[:2], torch.zeros(8))
        >>> round(loss.item(), 4), rows.shape  # log 8, of four pairs
        (2.0794, torch.Size([2, 4]))
    """
    pairs = view_pairs(len(teacher), len(student))
    if not pairs:
        raise ValueError(f"student={len(student)} views must be more than one: a view is never compared with itself")
    batch, sizes = len(student[0]), [view.shape[1] for view in student]
    if features is None:
        if {*sizes, *(view.shape[1] for view in teacher)} != {1}:
            raise ValueError("features=None must go with views of one region each: regions are matched by features")
        match = same_images(batch, len(teacher), len(student), center.device)
    else:
        match = all_matches(*features)
    ours, theirs = (torch.cat([view.flatten(0, 1) for view in views]) for views in (student, teacher))
    heat: Any = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
    return compare_pairs(ours, theirs, match, sizes, pairs, 1.0, center=center, **heat)


def view_pairs(num_global: int, num_views: int) -> Pairs:
    """All pairs of a teacher's view and another one."""
    return [(q, v) for q in range(num_global) for v in range(num_views) if v != q]


def same_images(batch: int, num_global: int, num_views: int, device: torch.device) -> Int[Tensor, "n g"]:
    """Rows of the teacher's views of the same image, for every view of the student's."""
    place = torch.arange(batch, device=device)
    return torch.stack([place + q * batch for q in range(num_global)], 1).repeat(num_views, 1)


def all_matches(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Int[Tensor, "n g"]:
    """Rows of the teacher's views that the student's regions are most similar to, view after view."""
    batch, theirs = len(student[0]), [view.shape[1] for view in teacher]
    starts = [0, *accumulate(batch * size for size in theirs)]
    place = torch.arange(batch, device=student[0].device)[:, None]
    return torch.cat([
        torch.stack([
            (match_regions(view, other) + place * size + start).flatten()
            for other, size, start in zip(teacher, theirs, starts, strict=False)
        ], 1)
        for view in student
    ])  # fmt: skip


def compare_pairs(
    student: Tensor, teacher: Tensor, match: Tensor, sizes: list[int], pairs: Pairs, weight: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """The mean over images and pairs, by a weight; and without it for every pair, ``[B, pairs]``.

    Views of the student have ``sizes`` regions; all else is as `paired_cross_entropy` has it.
    """
    batch = len(student) // sum(sizes)
    share, ends = weight / (batch * len(pairs)), list(accumulate(batch * size for size in sizes))
    pairings = tuple(
        Pairing(end - batch * size, end, tuple(q for q, other in pairs if other == v), share / size)
        for v, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )
    loss, entropies = paired_cross_entropy(student, teacher, match=match, pairings=pairings, **options)
    columns = [entropies[pairings[v].start : ends[v], q].reshape(batch, -1).mean(1) for q, v in pairs]
    return loss, torch.stack(columns, dim=1)


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
        # an accelerator's autocast would convert the operands of a mixed operation one by one
        with full_precision(student):
            one = torch.ones(1, dtype=dtype, device=center.device)
            given = _Given(
                student,
                teacher,
                match,
                # of one dimension, which makes an operation with 16-bit logits compute and return single precision
                one * student_temperature,
                one / teacher_temperature,
                center.to(dtype).div(-teacher_temperature),
                gradient,
            )
            entropies = torch.zeros(match.shape, dtype=dtype, device=student.device)
            loss = torch.zeros((), dtype=dtype, device=student.device)
            compare = _compare_whole if torch.compiler.is_compiling() else _compare
            for pairing in pairings:
                slope_scale = len(pairing.teachers) * pairing.weight / student_temperature
                for view, column in zip(pairing.teachers, compare(given, pairing, slope_scale), strict=True):
                    entropies[pairing.start : pairing.stop, view] = column
                    loss = loss + pairing.weight * column.sum()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return loss, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outgoing: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outgoing[0]), *(None,) * 7


class _Given(NamedTuple):
    """What all pairings share: one operation converts, shifts and scales logits."""

    student: Tensor
    teacher: Tensor
    match: Tensor
    temperature: Tensor  # the student's
    factor: Tensor  # one by the teacher's
    shift: Tensor  # the centre by it, negative
    gradient: Tensor | None


def _compare(given: _Given, pairing: Pairing, slope_scale: float) -> list[Tensor]:
    """Cross-entropies of a view's rows with each of its teachers' views; writes the rows of the gradient."""
    student, teacher, match, temperature, factor, shift, gradient = given
    number, dtype = len(pairing.teachers), shift.dtype
    columns = [match[pairing.start : pairing.stop, view].contiguous() for view in pairing.teachers]
    # of every row: largest logit, largest probability, and what the teachers' probabilities make of its logits
    rows = pairing.stop - pairing.start
    top, peak, *dots = torch.empty(2 + number, rows, dtype=dtype, device=student.device)
    step = min(rows, _rows_of_a_chunk(student, dtype))
    # used by one chunk after the other: memory that is freed and got again costs a CPU more than a pass over it
    held = torch.empty(BUFFERS, step, student.shape[1], dtype=dtype, device=student.device)
    for start in range(0, rows, step):
        inside = slice(start, min(start + step, rows))
        outside = slice(pairing.start + inside.start, pairing.start + inside.stop)
        scaled, slope, said, wanted = held[:, : inside.stop - inside.start]
        torch.div(student[outside], temperature, out=scaled)
        torch.softmax(scaled, 1, out=slope)
        torch.amax(scaled, 1, out=top[inside])
        torch.amax(slope, 1, out=peak[inside])
        for column, dot in zip(columns, dots, strict=True):
            torch.addcmul(shift, _gathered(teacher, column[inside], said), factor, out=said)
            torch.softmax(said, 1, out=wanted)
            slope.sub_(wanted, alpha=1 / number)
            torch.sum(wanted.mul_(scaled), 1, out=dot[inside])
        if gradient is not None:
            torch.mul(slope, slope_scale, out=gradient[outside])
    # one pass of exponentials serves for both: the largest probability is exp(0) over their sum
    total = top - peak.log()
    return [total - dot for dot in dots]


def _compare_whole(given: _Given, pairing: Pairing, slope_scale: float) -> list[Tensor]:
    """The same of all rows at once, for a compiler, which fuses it and holds few tables of a view's rows."""
    student, teacher, match, temperature, factor, shift, gradient = given
    rows = slice(pairing.start, pairing.stop)
    scaled = student[rows] / temperature
    said = scaled.log_softmax(1)
    wanted = [(teacher[match[rows, view]] * factor + shift).softmax(1) for view in pairing.teachers]
    if gradient is not None:
        gradient[rows] = (said.exp() - sum(wanted) / max(1, len(wanted))) * slope_scale
    return [-(one * said).sum(1) for one in wanted]


def _gathered(x: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """Rows of a tensor, in ``out`` where they are of its type."""
    return torch.index_select(x, 0, rows, out=out) if x.dtype == out.dtype else x.index_select(0, rows)


def _rows_of_a_chunk(logits: Tensor, dtype: torch.dtype) -> int:
    """As many as a chunk's bytes hold, in the precision that is computed in."""
    size = CHUNK_BYTES_CPU if logits.device.type == "cpu" else CHUNK_BYTES_ACCELERATOR
    return max(1, size // (BUFFERS * logits.shape[1] * dtype.itemsize))
