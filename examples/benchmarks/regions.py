"""The loss of views' regions at 65,536 classes: this library against plain loops over pairs of views.

    python -m examples.benchmarks.regions --rounds 5

EsViT's numbers: two crops of 7x7 regions and eight of 3x3, heads of 65,536 classes, four images. Forward and backward
pass of the loss alone, one thread, runs alternate. The loops hold log-probabilities of the student and probabilities
of the teacher for every region, as the method's own description reads. Extra memory is what a pass adds to that of the
logits, at its peak.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import ssl_blocks as sb
from examples.benchmarks.measure import alternate, clocked, compared, machine
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

    def ours(self) -> Tensor:
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
        )
        return loss

    def loops(self) -> Tensor:
        """One pair of views after the other, as EsViT's code has it."""
        wanted = ((self.teacher.float() - self.center) / TEACHER).softmax(1)
        said = [(self.student[self.rows(v)].float() / STUDENT).log_softmax(1) for v in range(len(self.sizes))]
        losses = [-(wanted[self.match[self.rows(v), q]] * said[v]).sum(1).mean() for q, v in self.pairs]
        return torch.stack(losses).mean()

    def backward(self, loss_of: Callable[[], Tensor]) -> Tensor:
        """A forward and a backward pass, which leaves the gradient; returns the loss."""
        self.student.grad = None
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def extra_memory(case: Case, loss_of: Callable[[], Tensor]) -> float:
    """Highest number of MiB that forward and backward pass hold at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        case.backward(loss_of)
    now = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 2**20


def main() -> None:
    """Compare, and print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each, after one to warm up")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=65_536)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = Case(args.batch, args.classes)
    ways = {"ours": case.ours, "loops": case.loops}
    gradients = []
    for way in ways.values():
        case.backward(way)
        assert case.student.grad is not None
        gradients.append(case.student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)
    del gradients
    print(machine(torch.device("cpu")))
    print(
        f"region loss, {args.classes:,} classes, batch {args.batch}, 2 x {GLOBAL} + {NUM_LOCAL} x {LOCAL} regions, fp32"
    )
    times = alternate({name: partial(clocked, partial(case.backward, way)) for name, way in ways.items()}, args.rounds)
    print(f"time: {compared(times)}")
    extra = {name: extra_memory(case, way) for name, way in ways.items()}
    shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in extra.items())
    print(f"extra memory: {shown}, {extra['loops'] / extra['ours']:.2f}x")


if __name__ == "__main__":
    main()
