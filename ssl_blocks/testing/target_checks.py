"""Checks for what is predicted, and for how predictions are compared with it: targets and losses."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.grid import Grid
from ssl_blocks.parts.loss import Loss
from ssl_blocks.parts.target import Target
from ssl_blocks.testing.role_case import Role, RoleReport, apart, default_state, noise, require_several, same
from ssl_blocks.testing.waits import check_waits


def check_target(target: Target, images: Float[Tensor, "b c *s"], grid: Grid, *, tolerance: float = 1e-4) -> RoleReport:
    """Prove that a target keeps the promises of ``Target``.

    It returns finite values ``[B, N, dim]`` on the images' device, the same in every call and in training mode, and
    draws nothing. Images stay as they are; one alone has the targets that it has in a batch. Targets carry no gradient
    to weights of a teacher. ``to_pixels``, where there is one, makes pictures of the images' size.

    Args:
        target: the target.
        images: ``[B, C, H, W]`` that it fits, at least 2.
        grid: the tokens' grid, ``N`` cells.
        tolerance: largest difference relative to the largest value, where rounding may differ.

    Examples:
        >>> import ssl_blocks as sb
        >>> target = sb.PixelTarget(sb.PatchTokenizer(image_size=8, patch_size=2))
        >>> check_target(target, torch.rand(2, 3, 8, 8), sb.Grid(4, 4)).passed
        ('values', 'determinism', 'images in a batch', 'gradients', 'no waits', 'pictures')
    """
    require_several(len(images))
    target = copy.deepcopy(target)
    if isinstance(target, nn.Module):
        target.eval()
    return _TargetCase(target, images, grid, tolerance).run()


@dataclass(frozen=True)
class _TargetCase(Role):
    name = "target"
    images: Tensor
    grid: Grid
    tolerance: float

    def values(self) -> None:
        before = self.images.clone()
        found = self.part(self.images)
        self.expect_shape("values [B, N, dim]", found, (len(before), self.grid.num_tokens, self.part.dim))
        self.expect_device("values", found, before.device)
        self.expect_finite("values", found)
        if not torch.equal(before, self.images):
            self.fail("images as they were", "changed ones")

    def determinism(self) -> None:
        found = self.part(self.images)
        for mode in (False, True):
            if isinstance(self.part, nn.Module):
                self.part.train(mode)
            state = default_state(self.images.device)
            again = self.part(self.images)
            if not same(state, default_state(self.images.device)):
                self.fail("values without a random choice", f"a draw, with training={mode}")
            if not torch.equal(found, again):
                self.fail("the same values in every call", f"others, with training={mode}")

    def images_in_a_batch(self) -> None:
        together = self.part(self.images)
        for i in range(len(self.images)):
            expected, rows = "an image alone to have the values that it has in a batch", slice(i, i + 1)
            found = self.part(self.images[rows])
            self.expect_equal(expected, found, together[rows], self.tolerance, f" in image {i}")

    def gradients(self) -> None:
        if self.part(self.images.detach()).requires_grad:
            self.fail("values without a gradient to the target's own weights", "values that require one")

    def no_waits(self) -> None:
        check_waits(self, lambda target, images: target(images), self.part, self.images)

    def pictures(self) -> str | None:
        to_pixels, images = getattr(self.part, "to_pixels", None), self.images
        if to_pixels is None:
            return "the target has no to_pixels"
        shape = (len(images), self.grid.num_tokens, self.part.dim)
        for predictions in (self.part(images), noise(images.device, *shape, dtype=images.dtype)):
            found = to_pixels(predictions, images)
            self.expect_shape("pictures of the images' size", found, tuple(images.shape))
            self.expect_finite("pictures", found)
        return None


def check_loss(loss: Loss, *, dim: int = 5, tolerance: float = 1e-5) -> RoleReport:
    """Prove that a loss keeps the promises of ``Loss``.

    It is a scalar, and a mean over the rows of the whole batch that count: images weigh as many rows as they have.
    Rows that do not count have no say, whatever they hold; a batch without any that counts has loss 0 and finite
    gradients. A gradient reaches every prediction that counts, and no other.

    Args:
        loss: the loss; it is given logits and probabilities, which others may take as plain values.
        dim: values of a prediction.
        tolerance: largest difference relative to the loss.

    Examples:
        >>> from ssl_blocks import predicted_l1
        >>> check_loss(predicted_l1).passed
        ('mean', 'other rows', 'no waits', 'nothing that counts')
    """
    cpu = torch.device("cpu")
    predictions = noise(cpu, 3, 6, dim).requires_grad_()
    targets = noise(cpu, 3, 6, dim, seed=1).softmax(-1)
    is_target = torch.arange(6) >= torch.tensor([[1], [4], [3]])  # 5, 2 and 3 rows
    return _LossCase(loss, predictions, targets, is_target, tolerance).run()


@dataclass(frozen=True)
class _LossCase(Role):
    name = "loss"
    predictions: Tensor
    targets: Tensor
    is_target: Tensor
    tolerance: float

    def mean(self) -> None:
        whole = self.part(self.predictions, self.targets, self.is_target)
        self.expect_shape("the loss", whole, ())
        rows = [slice(i, i + 1) for i in range(3)]
        parts = [self.part(self.predictions[i], self.targets[i], self.is_target[i]) for i in rows]
        counts = self.is_target.sum(1)
        expected = torch.stack([part * count for part, count in zip(parts, counts, strict=True)]).sum() / counts.sum()
        self.expect_equal("the mean over all rows of the batch that count", whole, expected, self.tolerance)

    def other_rows(self) -> None:
        hole = torch.where(self.is_target[..., None], 0.0, torch.nan)
        (plain,) = torch.autograd.grad(self.part(self.predictions, self.targets, self.is_target), self.predictions)
        found = self.part(self.predictions + hole, self.targets + hole, self.is_target)
        (gradient,) = torch.autograd.grad(found, self.predictions)
        if not torch.equal(gradient.isnan() | (gradient != 0), (plain != 0) & self.is_target[..., None]):
            self.fail("a gradient at the rows that count, and 0 at others, which hold NaN", "another one")
        if not bool((plain != 0).any(-1)[self.is_target].all()):
            self.fail("a gradient at every row that counts", "none at some")
        difference = apart(found, self.part(self.predictions, self.targets, self.is_target), 0.0)
        if difference or not bool(found.isfinite()):
            self.fail("rows that do not count to have no say", f"{found.item()} where they hold NaN")

    def no_waits(self) -> None:
        def step(predictions: Tensor, targets: Tensor, is_target: Tensor) -> None:
            self.part(predictions.detach().requires_grad_(), targets, is_target).backward()

        check_waits(self, step, self.predictions.detach(), self.targets, self.is_target)

    def nothing_that_counts(self) -> None:
        found = self.part(self.predictions, self.targets, torch.zeros_like(self.is_target))
        (gradient,) = torch.autograd.grad(found, self.predictions, allow_unused=True)
        if found.item() != 0 or (gradient is not None and not bool((gradient == 0).all())):
            self.fail("loss 0 and gradients of 0 where nothing counts", f"loss {found.item()} or other gradients")
