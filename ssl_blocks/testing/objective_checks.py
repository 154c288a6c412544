"""A check for objectives: what a training loop, a picture and a checkpoint rely on."""

import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.objectives.life_cycle import NO_PARTS
from ssl_blocks.objectives.objective import Objective
from ssl_blocks.testing.role_case import (
    Role,
    RoleReport,
    check_sampling,
    default_state,
    mapped,
    require_several,
    rows_of,
    same,
    seeded,
    shake,
)
from ssl_blocks.testing.waits import check_waits
from ssl_blocks.values import ObjectiveOutput, Progress, Views

_PROGRESS = Progress(step=0, epoch=0, num_steps=10, steps_per_epoch=5)


def check_objective(
    objective: Objective,
    images: Float[Tensor, "b c *s"] | Views,
    *,
    looks: bool = False,
    whole_batch: bool = False,
    compiles: bool = False,
    tolerance: float = 1e-4,
) -> RoleReport:
    """Prove that an objective keeps what a training loop relies on. Everything is tried on copies.

    Draws follow the generator and nothing else, and are made on the images' device. Given a draw, and without dropout,
    the output is the same in every call and nothing more is drawn. Shapes, types and values are as `ObjectiveOutput`
    has them, in training mode, too. An image alone has the rows that it has in a batch; the loss times ``divisor`` is
    the sum of that over images, so that the loss was divided by it. A gradient reaches every trained parameter. A state
    dict that is loaded brings everything back. ``before_step`` and ``after_step`` reach every part once. Nothing in a
    training step makes an accelerator wait, see `assert_no_wait`.

    Args:
        objective: the objective; small ones take seconds.
        images: ``[B, C, H, W]`` or `Views` that it fits, at least 2.
        looks: whether ``draw`` looks at images in a way that an accelerator has to wait for.
        whole_batch: whether rows or loss are of the whole batch, as in a contrast of its images or a `WeightedSum`:
            images are not compared with themselves alone then.
        compiles: also compile ``forward`` in one graph (``backend="eager"``), which is slow.
        tolerance: largest difference relative to the largest value, where rounding may differ.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, depth=1, embed_dim=16, num_heads=2)
        >>> objective = sb.simmim(encoder=encoder, tokenizer=sb.PatchTokenizer(image_size=8, patch_size=2))
        >>> check_objective(objective, torch.rand(2, 3, 8, 8)).not_applicable
        {'compilation': 'not asked for'}
    """
    batch = images.batch if isinstance(images, Views) else len(images)
    require_several(batch)
    device = images.images[0].device if isinstance(images, Views) else images.device
    own = copy.deepcopy(objective).eval()
    shake(own)
    return _Case(own, images, batch, device, looks, whole_batch, compiles, tolerance).run()


_WHOLE = "rows or loss are of the whole batch"


@dataclass(frozen=True)
class _Case(Role):
    name = "objective"
    images: Any
    batch: int
    device: torch.device
    looks: bool
    whole_batch: bool
    compiles: bool
    tolerance: float

    def _draw(self) -> Any:
        return self.part.draw(self.images, generator=seeded(self.device))

    def _singles(self) -> list[ObjectiveOutput]:
        """The output of every image alone."""
        draw, outs = self._draw(), []
        for i in range(self.batch):
            one, own = (rows_of(value, slice(i, i + 1), self.batch) for value in (self.images, draw))
            outs.append(self.part(one, own))
        return outs

    def draw(self) -> None:
        def sample(generator: torch.Generator | None, device: torch.device) -> Any:
            return self.part.draw(mapped(self.images, lambda x: x.to(device)), generator=generator)

        check_sampling(self, sample, self.device, looks=self.looks)

    def output(self) -> None:
        for mode in (True, False):
            self.part.train(mode)
            self._check_fields(self.part(self.images, self._draw()), " in training mode" if mode else "")

    @property
    def _num_cut(self) -> int:
        """Views through which positions are counted: those of the first one's size."""
        if not isinstance(self.images, Views) or not self.part.takes_views:
            return 1
        return sum(view.shape == self.images.images[0].shape for view in self.images.images)

    def _check_fields(self, out: Any, when: str) -> None:
        if not isinstance(out, ObjectiveOutput):
            self.fail("an ObjectiveOutput", type(out).__name__)
        rows = (self.batch, *out.predictions.shape[1:2])
        shape = (*rows, *out.predictions.shape[2:3])
        self.expect_shape("loss", out.loss, ())
        for name, wanted, dtype in (
            ("predictions", shape, None),
            ("targets", shape, None),
            ("index", rows, torch.int64),
            ("step", rows, torch.int64),
            ("is_target", rows, torch.bool),
        ):
            self.expect_shape(name, getattr(out, name), wanted, dtype)
        tokenizer = self.part.tokenizer
        if tokenizer is not None:
            n = tokenizer.grid.num_tokens * self._num_cut
            if out.given is not None:
                by_row = rows[1:] if out.given.ndim == 3 else ()
                self.expect_shape("given [B, N] or [B, t, N]", out.given, (self.batch, *by_row, n), torch.bool)
            if int(out.index.min()) < 0 or int(out.index.max()) >= n:
                self.fail(f"index within the {n} tokens", f"{int(out.index.min())}..{int(out.index.max())}")
        for name, value in {"divisor": out.divisor, **out.metrics}.items():
            if tuple(value.shape) != ():
                self.fail(f"{name} to be a scalar", f"shape {tuple(value.shape)}")
        for name, value in {"loss": out.loss, "divisor": out.divisor, **out.metrics}.items():
            if not bool(value.isfinite()):
                self.fail(f"a finite {name}{when}", value.item())
        if out.divisor.item() <= 0 or not bool(out.predictions[out.is_target].isfinite().all()):
            self.fail(f"finite predictions of something{when}", f"{int(out.is_target.sum())} of them, or others")

    def determinism(self) -> None:
        draw = self._draw()
        first, state = self.part(self.images, draw), default_state(self.device)
        for name, given in (("the same draw", draw), ("the draw of its output", first.draw)):
            again = self.part(self.images, given)
            if not all(same(getattr(first, key), getattr(again, key)) for key in ("loss", "predictions", "index")):
                self.fail(f"the same output for {name}", "another one")
        if not same(state, default_state(self.device)):
            self.fail("no further random choice where a draw is given", "one in forward")
        if not bool(self.part(self.images).loss.isfinite()):
            self.fail("a finite loss without a draw", "another one")

    def images_in_a_batch(self) -> str | None:
        if self.whole_batch:
            return _WHOLE
        together = self.part(self.images, self._draw())
        for i, out in enumerate(self._singles()):
            for name in ("predictions", "targets", "index", "step", "is_target"):
                expected = f"{name} of an image alone as in a batch (or whole_batch=True)"
                found, wanted = getattr(out, name), getattr(together, name)[i : i + 1]
                self.expect_equal(expected, found, wanted, self.tolerance, f" in image {i}")
        return None

    def count(self) -> str | None:
        if self.whole_batch:
            return _WHOLE
        together, singles = self.part(self.images, self._draw()), self._singles()
        parts = [out.divisor.item() for out in singles]
        if abs(sum(parts) - together.divisor.item()) > self.tolerance * together.divisor.item():
            self.fail(f"the divisor to be the sum of the images', {parts}", together.divisor.item())
        expected = "the loss to be a sum over images divided by output.count (None: the rows that count)"
        wanted = torch.stack([out.loss * out.divisor for out in singles]).sum() / together.divisor
        self.expect_equal(expected, together.loss, wanted.to(together.loss.dtype), self.tolerance)
        return None

    def gradients(self) -> None:
        wanted = {name: p for name, p in self.part.named_parameters() if p.requires_grad}
        loss = self.part(self.images, self._draw()).loss
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        self.expect_gradients(dict(zip(wanted, found, strict=True)))

    def state(self) -> None:
        before, saved = self.part(self.images, self._draw()).loss, io.BytesIO()
        torch.save(self.part.state_dict(), saved)
        shake(self.part)
        saved.seek(0)
        try:
            self.part.load_state_dict(torch.load(saved, weights_only=True), strict=True)
        except RuntimeError as error:
            self.fail("a state dict that loads strictly", str(error).strip().replace("\n", " "))
        after = self.part(self.images, self._draw()).loss
        if not torch.equal(before, after):
            self.fail("the same loss after loading what was saved", f"{after.item()}, not {before.item()}")

    def hooks(self) -> None:
        objective = copy.deepcopy(self.part)
        calls: dict[tuple[str, str], int] = {}
        for path, part in _parts(objective):
            for hook in ("before_step", "after_step"):
                if part is not objective and callable(getattr(part, hook, None)):
                    calls[path, hook] = 0
                    _count(part, hook, calls, (path, hook))
        objective(self.images, self._draw())
        objective.before_step(_PROGRESS)
        objective.after_step()
        for (path, hook), number in calls.items():
            if number != 1:
                self.fail(f"{hook} to reach {path} once in a step", f"{number} calls")

    def compilation(self) -> str | None:
        if not self.compiles:
            return "not asked for"
        draw = self._draw()
        expected = self.part(self.images, draw).loss
        torch._dynamo.reset()
        try:
            compiled: Any = torch.compile(self.part, fullgraph=True, backend="eager")
            found = compiled(self.images, draw).loss
        except Exception as error:
            self.fail("forward to compile in one graph", str(error).strip().partition("\n")[0])
        self.expect_equal("the same loss when compiled", found, expected, self.tolerance)
        return None

    def no_waits(self) -> None:
        def step(objective: Objective, images: Any, draw: Any) -> None:
            objective.train()
            objective.before_step(_PROGRESS)
            objective(images, objective.draw(images) if draw is None else draw).loss.backward()
            objective.after_step()

        check_waits(self, step, self.part, self.images, self._draw() if self.looks else None)


def _count(part: Any, hook: str, calls: dict[tuple[str, str], int], key: tuple[str, str]) -> None:
    original = getattr(part, hook)

    def counted(*args: Any) -> None:
        calls[key] += 1
        original(*args)

    object.__setattr__(part, hook, counted)


def _parts(objective: nn.Module) -> Iterator[tuple[str, Any]]:
    """All that an objective is made of, each once: modules, and what plain attributes hold, by path."""
    registered = {id(module) for module in objective.modules()}
    found: set[int] = set()
    pending: list[tuple[str, Any]] = list(objective.named_modules())
    while pending:
        path, value = pending.pop(0)
        if id(value) in found or isinstance(value, NO_PARTS):
            continue
        found.add(id(value))
        if isinstance(value, tuple | list | dict):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            # a module that hides in a container of a module belongs to somebody else
            pending += [(f"{path}.{key}", x) for key, x in inner if not isinstance(x, nn.Module)]
            continue
        if not hasattr(value, "__dict__"):
            continue
        yield path, value
        own = vars(value).items()
        if id(value) in registered:
            own = [(name, x) for name, x in own if not isinstance(x, nn.Module) and not name.startswith("_")]
        pending += [(f"{path}.{name}".lstrip("."), x) for name, x in own]
