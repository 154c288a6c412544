"""All looks of the leak test at one subject: in double precision, in training, under autocast, compiled, as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssl_blocks.testing import leak_draws
from ssl_blocks.testing.leak_case import Images, LeakCase, LeakError, Subject, cast, make_case, some_more, views_of
from ssl_blocks.testing.leak_checks import check_gradients, check_loss, check_noise, check_targets
from ssl_blocks.testing.leak_function import check_index
from ssl_blocks.testing.precise import all_kept, zero_weights


@dataclass
class Looks:
    """How a subject is looked at, as `check_leaks` has it, and what was seen."""

    subject: Subject
    images: Images
    draws: int
    compiled: bool
    generator: torch.Generator | None
    tolerance: float
    hints: list[str] = field(default_factory=list)
    tried: int = 0

    @property
    def _device(self) -> torch.device:
        return views_of(self.images)[0].device

    def run(self) -> Iterator[str]:
        """Yield a sentence for every look that finds a leak."""
        _check_finite(self.images)
        zero = zero_weights(self.subject.module)
        if zero:
            shown = f"{', '.join(zero[:3])}{f' and {len(zero) - 3} more' if len(zero) > 3 else ''}"
            self.hints.append(f"weights that are zero ({shown}) were shaken while this looked, as all are")
        dtype, why = self._precision()
        if why:
            self.hints.append(why)
        with self._set(dtype, shaken=True):
            yield from self._exact(cast(self.images, dtype))
            yield from self._many(cast(self.images, dtype), leak_draws.batches(self.draws), order=True)
            self.subject.module.train()
            small = leak_draws.batches(self.draws)[:2]
            yield from self._many(cast(self.images, dtype), small, " in training mode")
        with self._set(None, shaken=False):
            yield from self._many(self.images, small[-1:], " with the weights as they are")
        with self._set(None, shaken=True), torch.autocast(self._device.type, torch.bfloat16):
            yield from self._many(self.images, small[-1:], " under autocast")
        if self.compiled:
            yield from self._compiled(small[:1])
        else:
            self.hints.append("compiled code was not looked at (compiled=True)")

    @contextmanager
    def _set(self, dtype: torch.dtype | None, *, shaken: bool) -> Iterator[None]:
        """The module in evaluation mode, without surrounding autocast, and put back afterwards."""
        plain = torch.autocast(self._device.type, enabled=False)
        with all_kept(self.subject.module, dtype=dtype, shaken=shaken), plain, torch.enable_grad():
            self.subject.module.eval()
            yield

    def _precision(self) -> tuple[torch.dtype, str | None]:
        """The finest precision that the code takes, and a word where that is not double."""
        reasons = []
        for dtype in (torch.float64, torch.float32):
            try:
                with self._set(dtype, shaken=True):
                    generator = None if self.generator is None else self.generator.clone_state()
                    make_case(self.subject, cast(self.images, dtype), generator, graph=False)
            except (RuntimeError, TypeError, NotImplementedError) as error:
                reasons.append(str(error).strip().partition("\n")[0])
                continue
            except (LeakError, ValueError):
                pass  # the looks will tell
            if dtype == torch.float64:
                return dtype, None
            return dtype, f"not looked at in double precision, so faint leaks may pass: {reasons[0]}"
        own = views_of(self.images)[0].dtype
        return own, f"looked at in {own} alone, so faint leaks may pass: {reasons[0]}"

    def _exact(self, images: Images) -> Iterator[str]:
        """A few images: targets, loss, every step by gradient and by noise."""
        try:
            case = make_case(self.subject, images, self.generator)
        except LeakError as leak:
            yield str(leak)
            return
        self.tried += len(case.out.index)
        looks: list[Callable[[], Any]] = [partial(look, case) for look in (check_targets, check_loss)]
        looks += [partial(look, case, self.generator, self.tolerance) for look in (check_gradients, check_noise)]
        yield from self._found([partial(self._check_index, case, images), *looks])

    def _many(self, images: Images, sizes: tuple[int, ...], when: str = "", *, order: bool = False) -> Iterator[str]:
        """Batches of many draws."""
        for size in sizes:
            counted = order and size == sizes[len(sizes) // 2]
            try:
                case = make_case(self.subject, some_more(images, size, self.generator), self.generator, graph=counted)
            except LeakError as leak:
                yield f"{leak}{when}"
                return
            except (RuntimeError, TypeError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                self.hints.append(f"not looked at in a batch of {size}{when}: {reason}")
                continue
            self.tried += size
            rest = (case, self.generator, self.tolerance, when)
            own = (leak_draws.check_hidden, leak_draws.check_images, leak_draws.check_places)
            looks: list[Callable[[], Any]] = [partial(look, *rest) for look in own]
            if counted:
                looks.append(partial(check_loss, case))
            if order:
                looks.append(partial(leak_draws.check_order, case, self.generator))
            yield from self._found(looks)

    def _found(self, looks: list[Callable[[], Any]]) -> Iterator[str]:
        for look in looks:
            try:
                why = look()
            except LeakError as leak:
                yield str(leak)
            else:
                if why and why not in self.hints:
                    self.hints.append(why)

    def _check_index(self, case: LeakCase, images: Images) -> None:
        """Of a function, whose targets nobody else tells: whether they are the patches that its index names."""
        if self.subject.target is not None or not isinstance(images, Tensor):
            return
        wrong = check_index(case.out.targets, case.out.index, images, self.subject.tokenizer)
        if wrong is not None:
            image, row, place = wrong
            raise LeakError(
                f"target row {row} of image {image} is the patch of position {place}, but its index says "
                f"{int(case.out.index[image, row])}: targets are shifted against predictions"
            )

    def _compiled(self, sizes: tuple[int, ...]) -> Iterator[str]:
        torch._dynamo.reset()
        faster: Any = torch.compile(self.subject.compute, backend="eager")
        own, self.subject = self.subject, replace(self.subject, compute=faster)
        try:
            with self._set(None, shaken=True):
                yield from self._many(self.images, sizes, " when compiled")
        finally:
            self.subject = own
            torch._dynamo.reset()


def _check_finite(images: Images) -> None:
    for view in views_of(images):
        for image in (~view.isfinite().flatten(1).all(1)).nonzero()[:1, 0].tolist():
            raise ValueError(f"images must be finite, but image {image} holds NaN or infinite values")
