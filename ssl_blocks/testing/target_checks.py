"""Checks for what is predicted, and for how predictions are compared with it: targets and losses."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.parts.loss import Loss
from ssl_blocks.parts.target import Target
from ssl_blocks.testing.role_case import Role, RoleReport, apart, default_state, noise, require_several, same
from ssl_blocks.values import Grid


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
        ('values', 'determinism', 'images in a batch', 'gradients', 'pictures')
    """
    require_several(len(images))
    role, target = Role("target", target), copy.deepcopy(target)
    if isinstance(target, nn.Module):
        target.eval()

    def values() -> None:
        before = images.clone()
        found = target(images)
        role.expect_shape("values [B, N, dim]", found, (len(images), grid.num_tokens, target.dim))
        role.expect_device("values", found, images.device)
        role.expect_finite("values", found)
        if not torch.equal(before, images):
            role.fail("images as they were", "changed ones")

    def determinism() -> None:
        found = target(images)
        for mode in (False, True):
            if isinstance(target, nn.Module):
                target.train(mode)
            state = default_state(images.device)
            again = target(images)
            if not same(state, default_state(images.device)):
                role.fail("values without a random choice", f"a draw, with training={mode}")
            if not torch.equal(found, again):
                role.fail("the same values in every call", f"others, with training={mode}")

    def alone() -> None:
        together = target(images)
        for i in range(len(images)):
            expected, rows = "an image alone to have the values that it has in a batch", slice(i, i + 1)
            role.expect_equal(expected, target(images[rows]), together[rows], tolerance, f" in image {i}")

    def gradients() -> None:
        if target(images.detach()).requires_grad:
            role.fail("values without a gradient to the target's own weights", "values that require one")

    def pictures() -> str | None:
        to_pixels = getattr(target, "to_pixels", None)
        if to_pixels is None:
            return "the target has no to_pixels"
        shape = (len(images), grid.num_tokens, target.dim)
        for predictions in (target(images), noise(images.device, *shape, dtype=images.dtype)):
            found = to_pixels(predictions, images)
            role.expect_shape("pictures of the images' size", found, tuple(images.shape))
            role.expect_finite("pictures", found)
        return None

    return role.run({
        "values": values,
        "determinism": determinism,
        "images in a batch": alone,
        "gradients": gradients,
        "pictures": pictures,
    })  # fmt: skip


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
        ('mean', 'other rows', 'nothing that counts')
    """
    role, cpu = Role("loss", loss), torch.device("cpu")
    predictions = noise(cpu, 3, 6, dim).requires_grad_()
    targets = noise(cpu, 3, 6, dim, seed=1).softmax(-1)
    is_target = torch.arange(6) >= torch.tensor([[1], [4], [3]])  # 5, 2 and 3 rows

    def mean() -> None:
        whole = loss(predictions, targets, is_target)
        role.expect_shape("the loss", whole, ())
        parts = [loss(predictions[i : i + 1], targets[i : i + 1], is_target[i : i + 1]) for i in range(3)]
        counts = is_target.sum(1)
        expected = torch.stack([part * count for part, count in zip(parts, counts, strict=True)]).sum() / counts.sum()
        role.expect_equal("the mean over all rows of the batch that count", whole, expected, tolerance)

    def others() -> None:
        hole = torch.where(is_target[..., None], 0.0, torch.nan)
        (plain,) = torch.autograd.grad(loss(predictions, targets, is_target), predictions)
        found = loss(predictions + hole, targets + hole, is_target)
        (gradient,) = torch.autograd.grad(found, predictions)
        if not torch.equal(gradient.isnan() | (gradient != 0), (plain != 0) & is_target[..., None]):
            role.fail("a gradient at the rows that count, and 0 at others, which hold NaN", "another one")
        if not bool((plain != 0).any(-1)[is_target].all()):
            role.fail("a gradient at every row that counts", "none at some")
        difference = apart(found, loss(predictions, targets, is_target), 0.0)
        if difference or not bool(found.isfinite()):
            role.fail("rows that do not count to have no say", f"{found.item()} where they hold NaN")

    def nothing() -> None:
        found = loss(predictions, targets, torch.zeros_like(is_target))
        (gradient,) = torch.autograd.grad(found, predictions, allow_unused=True)
        if found.item() != 0 or (gradient is not None and not bool((gradient == 0).all())):
            role.fail("loss 0 and gradients of 0 where nothing counts", f"loss {found.item()} or other gradients")

    return role.run({"mean": mean, "other rows": others, "nothing that counts": nothing})
