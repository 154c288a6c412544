"""A leak test by training: nothing of fresh noise can be predicted, so a loss below knowing nothing leaks."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_blocks.testing.leak_case import NotApplicableError
from ssl_blocks.testing.leak_function import as_predicted, modules_of
from ssl_blocks.testing.leak_subjects import is_objective, why_not
from ssl_blocks.testing.precise import all_kept, seeded
from ssl_blocks.values import ObjectiveOutput, Progress

LIMIT = 5.0
_BATCHES = 64


@dataclass(frozen=True)
class NoiseFloor:
    """What training on noise came to.

    Attributes:
        knowing_nothing: mean loss on the same batches with all weights zero, whose predictions are one constant.
        loss: mean loss after training, on noise that was never seen before.
        below: how far the loss lies below knowing nothing, in standard errors of the mean over 64 fresh batches.
        agreement: how far predictions agree with their own targets (a product of the two, summed up over rows), in
            standard errors over all images of these batches. Where nothing is known it is 0 but for chance.
        steps: of training.
    """

    knowing_nothing: float
    loss: float
    below: float
    agreement: float
    steps: int

    @property
    def leaks(self) -> bool:
        """Whether either lies more than 5 standard errors above 0: by chance once in 100,000 runs at most."""
        return max(self.below, self.agreement) > LIMIT

    def __str__(self) -> str:
        verdict = "leaks" if self.leaks else "no leak"
        return (
            f"{verdict}: after {self.steps} steps on noise the loss is {self.loss:.4f}, that of knowing nothing "
            f"{self.knowing_nothing:.4f} ({self.below:+.1f} standard errors below; agreement {self.agreement:+.1f})"
        )


def noise_floor(
    function: Any,
    *,
    steps: int = 200,
    shape: tuple[int, ...] | None = None,
    module: nn.Module | None = None,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> NoiseFloor:
    """Train on noise that is fresh in every step, and see whether the loss falls below that of knowing nothing.

    Pixels of noise say nothing of each other. An honest objective can learn at best to predict the mean, and its loss
    stays where it is with all weights zero; one that leaks learns to copy. This looks at the loss itself, so it also
    sees what `check_leaks` cannot: a further term of the loss, targets normalised over the whole image, a draw that
    looks at pixels. It is the coarser one: what training does not find in so many steps, it does not see.

    After training 64 fresh batches are looked at in evaluation mode, with the weights and with all weights zero. The
    verdict is ``leaks`` where the mean difference of the two losses is more than 5 standard errors above 0, or the
    agreement of predictions with their own targets is. Weights are put back to the bit.

    It needs targets that are made of each patch's own pixels, best of all normalised patches. Where targets hold pixels
    of other positions (SAIM's blur), part of them is given honestly, and the verdict is of that.

    Args:
        function: an objective, or what `check_leaks` takes.
        steps: of training.
        shape: of an image, ``(C, H, W)``; ``None``: as the objective's tokenizer has it.
        module: what is trained; ``None``: all modules that the function names.
        batch_size: images of a batch.
        learning_rate: of Adam.
        seed: of noise and draws.

    Raises:
        NotApplicableError: (a ``ValueError``) if nothing is predicted of patches, targets are made by weights (an
            encoder's: compose the objective with ``PixelTarget(tokenizer, normalize=True)``), or the loss with zero
            weights is not finite.
        ValueError: if the shape is not known, or there is nothing to train.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=2, depth=1, embed_dim=8, num_heads=1)
        >>> tokenizer = sb.PatchTokenizer(image_size=8, patch_size=2)
        >>> target = sb.PixelTarget(tokenizer, normalize=True)
        >>> objective = sb.simmim(encoder=encoder, tokenizer=tokenizer, target=target)
        >>> noise_floor(objective, steps=20, batch_size=16).leaks
        False
    """
    if is_objective(function) and why_not(function):
        raise NotApplicableError(why_not(function))
    shape = _shape_of(function) if shape is None else shape
    own = nn.ModuleList(dict.fromkeys(modules_of(function) if module is None else [module]))
    weights = [p for p in own.parameters() if p.requires_grad]
    if not weights:
        raise ValueError("module=None: no weights were found to train, so name the module that is trained")
    run = _Run(_outcome(function), own, weights, (batch_size, *shape))
    gradients = [p.grad for p in weights]
    with all_kept(own), seeded(seed, weights[0].device), torch.enable_grad():
        try:
            run.train(function, steps, learning_rate)
            return run.judge(steps)
        finally:
            for p, was in zip(weights, gradients, strict=True):
                p.grad = was


Outcome = tuple[Tensor, Tensor, Tensor, Tensor]  # loss, predictions, targets, which rows count


@dataclass(frozen=True)
class _Run:
    outcome: Callable[[Tensor, int], Outcome]
    module: nn.Module
    weights: list[nn.Parameter]
    size: tuple[int, ...]

    def noise(self) -> tuple[Tensor, int]:
        """Fresh images, and a seed for what is drawn of them."""
        like = self.weights[0]
        dtype = like.dtype if like.dtype.itemsize > 2 else torch.float32
        return torch.randn(self.size, device=like.device, dtype=dtype), int(torch.randint(2**31, ()))

    def train(self, function: Any, steps: int, learning_rate: float) -> None:
        """Train by the function's own loss."""
        self.module.train()
        optimizer = torch.optim.Adam(self.weights, lr=learning_rate)
        for step in range(steps):
            progress = Progress(step=step, epoch=0, num_steps=steps, steps_per_epoch=steps)
            getattr(function, "before_step", lambda _: None)(progress)
            optimizer.zero_grad()
            self.outcome(*self.noise())[0].backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            optimizer.step()
            getattr(function, "after_step", lambda: None)()

    @torch.no_grad()
    def judge(self, steps: int) -> NoiseFloor:
        """Look at fresh batches, with the weights and without."""
        self.module.eval()
        losses, floors, products = [], [], []
        for _ in range(_BATCHES):
            batch, seed = self.noise()
            loss, predictions, targets, counts = self.outcome(batch, seed)
            with _zero(self.module):
                floor, _, others, _ = self.outcome(batch, seed)
            if not bool(floor.isfinite()):
                raise NotApplicableError(
                    "the loss is not finite with zero weights: what knowing nothing costs is not known"
                )
            if not torch.allclose(targets, others, rtol=1e-3, atol=1e-4):
                raise NotApplicableError(
                    "targets are made by weights, so knowing nothing has no loss of its own: look at the objective "
                    "with normalised patches as its target"
                )
            centred = torch.where(counts[..., None], targets - targets[counts].mean(0), 0.0)
            products.append((predictions * centred).double().sum((1, 2)))
            losses.append(loss.double())
            floors.append(floor.double())
        ours, theirs, product = torch.stack(losses), torch.stack(floors), torch.cat(products)
        return NoiseFloor(
            knowing_nothing=float(theirs.mean()),
            loss=float(ours.mean()),
            below=_errors(theirs - ours),
            agreement=_errors(product),
            steps=steps,
        )


def _errors(x: Tensor) -> float:
    """The mean in standard errors; 0 where nothing differs from 0."""
    mean, error = float(x.mean()), float(x.std()) / math.sqrt(len(x))
    if abs(mean) < 1e-12:
        return 0.0
    return mean / max(error, 1e-12)


@contextmanager
def _zero(module: nn.Module) -> Iterator[None]:
    with all_kept(module):
        for p in module.parameters():
            p.zero_()
        yield


def _outcome(function: Any) -> Callable[[Tensor, int], Outcome]:
    def outcome(images: Tensor, seed: int) -> Outcome:
        with seeded(seed, images.device):
            found = function(images)
        if isinstance(found, ObjectiveOutput):
            return found.loss, found.predictions, found.targets, found.is_target
        rows = as_predicted(found, getattr(function, "__name__", type(function).__name__))
        counts = torch.ones(rows.targets.shape[:2], dtype=torch.bool, device=rows.targets.device)
        counts = counts if rows.is_target is None else rows.is_target
        errors = (rows.predictions - rows.targets)[counts].square().mean()
        return errors if rows.loss is None else rows.loss, rows.predictions, rows.targets, counts

    return outcome


def _shape_of(function: Any) -> tuple[int, ...]:
    tokenizer = getattr(function, "tokenizer", None)
    size = getattr(tokenizer, "image_size", None)
    if tokenizer is None or size is None or len(size) != len(tokenizer.patch):
        raise ValueError("shape=None must be the shape (C, H, W) of an image: no tokenizer says it")
    return (tokenizer.channels, *size)
