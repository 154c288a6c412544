"""The loss of views' regions at 65,536 classes: this library against plain loops over pairs of views.

    python -m examples.benchmarks.regions --rounds 5

EsViT's numbers: two crops of 7x7 regions and eight of 3x3, heads of 65,536 classes, four images. Forward and backward
pass of the loss alone, one thread, runs alternate. The loops hold log-probabilities of the student and probabilities
of the teacher for every region, as the method's own description reads. "ours" overwrites the logits, as the objective
lets it; "beside" leaves them. Extra memory is what a pass adds to that of the logits, at its peak: counted as tensors
come and go, at any batch, without computing them. There is no matrix product, so what is compared
with the machine's rate is a copy: of the student's logits, and of the teacher's row for every pair.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import ssl_blocks as sb
from examples.benchmarks.counting import peak_bytes
from examples.benchmarks.measure import alternate, busy_ms, compared, machine
from ssl_blocks.parts.region_loss import Pairing

GLOBAL, LOCAL, NUM_LOCAL = 49, 9, 8
STUDENT, TEACHER = 0.1, 0.04


class Case:
    """Logits and matches as they come out of networks, at random."""

    def __init__(
        self,
        batch: int,
        classes: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.batch, self.sizes = batch, [GLOBAL] * 2 + [LOCAL] * NUM_LOCAL
        self.student = torch.randn(batch * sum(self.sizes), classes, device=device, dtype=dtype, requires_grad=True)
        self.teacher = torch.randn(batch * 2 * GLOBAL, classes, device=device, dtype=dtype)
        self.center = torch.randn(classes, device=device)
        # place among the regions of the teacher's view, for every region of every view
        places = torch.randint(GLOBAL, (len(self.student), 2), device=device)
        image = torch.cat([torch.arange(batch, device=device).repeat_interleave(size) for size in self.sizes])
        self.match = places + GLOBAL * (image[:, None] + batch * torch.arange(2, device=device))
        self.pairs = [(q, v) for q in range(2) for v in range(len(self.sizes)) if v != q]

    def rows(self, view: int) -> slice:
        """The rows of a view."""
        start = self.batch * sum(self.sizes[:view])
        return slice(start, start + self.batch * self.sizes[view])

    def ours(self, *, overwrite: bool = False) -> Tensor:
        """The library's loss."""
        pairings = tuple(
            Pairing(
                self.rows(v).start,
                self.rows(v).stop,
                tuple(q for q, other in self.pairs if other == v),
                1 / (len(self.pairs) * self.batch * size),
            )
            for v, size in enumerate(self.sizes)
        )
        loss, _ = sb.parts.paired_cross_entropy(
            self.student,
            self.teacher,
            self.center,
            self.match,
            pairings,
            student_temperature=STUDENT,
            teacher_temperature=TEACHER,
            overwrite=overwrite,
        )
        return loss

    def loops(self) -> Tensor:
        """One pair of views after the other, as EsViT's code has it."""
        wanted = ((self.teacher.float() - self.center) / TEACHER).softmax(1)
        said = [(self.student[self.rows(v)].float() / STUDENT).log_softmax(1) for v in range(len(self.sizes))]
        losses = [-(wanted[self.match[self.rows(v), q]] * said[v]).sum(1).mean() for q, v in self.pairs]
        return torch.stack(losses).mean()

    def copy(self) -> None:
        """What no way can spare: a gradient is written, and the teacher's row of every pair read."""
        self.student.detach().clone()
        for q, v in self.pairs:
            self.teacher.index_select(0, self.match[self.rows(v), q])

    def backward(self, loss_of: Callable[[], Tensor]) -> Tensor:
        """A forward and a backward pass, which leaves the gradient; returns the loss."""
        self.student.grad = None
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


WAYS: dict[str, Callable[[Case], Tensor]] = {
    "ours": lambda case: case.ours(overwrite=True),
    "beside": Case.ours,
    "loops": Case.loops,
}


def extra_mib(batch: int, classes: int, way: Callable[[Case], Tensor], *, dtype: torch.dtype) -> float:
    """Highest number of MiB that forward and backward pass hold at once besides the logits."""
    case = Case(batch, classes, device="meta", dtype=dtype)
    return peak_bytes(lambda: case.backward(partial(way, case))) / 2**20


def main() -> None:
    """Compare, and print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each, after one to warm up")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=65_536)
    parser.add_argument("--counted-batch", type=int, default=32, help="images for which memory is counted")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case, device = Case(args.batch, args.classes), torch.device("cpu")
    gradients = []
    for way in ("beside", "loops"):
        case.backward(partial(WAYS[way], case))
        assert case.student.grad is not None
        gradients.append(case.student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)
    del gradients
    print(machine(device))
    print(f"region loss, {args.classes:,} classes, 2 x {GLOBAL} + {NUM_LOCAL} x {LOCAL} regions")
    timed = {
        name: partial(busy_ms, partial(case.backward, partial(way, case)), device) for name, way in WAYS.items()
    }  # fmt: skip
    times = alternate({"copy": partial(busy_ms, case.copy, device), **timed}, args.rounds)
    copies = times.pop("copy")
    share = statistics.median(copy / ours for copy, ours in zip(copies, times["ours"], strict=True))
    print(f"time, fp32, batch {args.batch}: {compared(times)}; ours at {share:.0%} of the rate of a copy")
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        extra = {key: extra_mib(args.counted_batch, args.classes, way, dtype=dtype) for key, way in WAYS.items()}
        shown = ", ".join(f"{key} {mib:.0f} MiB ({extra['loops'] / mib:.1f}x)" for key, mib in extra.items())
        print(f"extra memory, {name}, batch {args.counted_batch}: {shown}")


if __name__ == "__main__":
    main()
