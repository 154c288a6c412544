"""Targets say what is predicted of every patch."""

import math
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_blocks.bounds import Depth
from ssl_blocks.doors import checked
from ssl_blocks.parts.average import MovingAverage
from ssl_blocks.parts.tokenize import Images, Tokenizer
from ssl_blocks.values import gather_tokens

_EPS = 1e-6  # inside the root: MAE's formula


@runtime_checkable
class Target(Protocol):
    """Computes the value to predict for every position."""

    dim: int

    def __call__(self, images: Images, /) -> Float[Tensor, "b n p"]:
        """Return targets ``[B, N, dim]`` in raster order."""
        ...


@runtime_checkable
class PictureTarget(Target, Protocol):
    """A target whose values can be shown."""

    def to_pixels(self, predictions: Float[Tensor, "b n p"], images: Images, /) -> Images:
        """Turn predictions ``[B, N, dim]`` of ``images`` into pictures."""
        ...


@checked
class PixelTarget:
    """Predict the pixels of each patch, raw or normalised by the patch's own mean and deviation.

    The values of a patch go row by row, channels last ``(y, x, c)`` (MAE and RandSAC), in a volume ``(z, y, x, c)``.
    Normalising uses the unbiased variance with 1e-6 inside the root (MAE, "norm_pix"; RandSAC from Table 10 on; raw
    before). SAIM blurs the image before it is cut, so that fine detail need not be predicted.

    Args:
        tokenizer: cuts the images; its crop applies.
        normalize: whether to normalise each patch.
        blur: size of a Gaussian kernel in pixels (odd) and its standard deviation, ``(9, 1.0)`` in SAIM; ``None`` blurs
            nothing. What lies outside the image counts as 0.

    Raises:
        ValueError: if a patch of one value shall be normalised, or the kernel's size is not odd, or its deviation not
            positive.

    Examples:
        >>> import torch
        >>> from ssl_blocks import PatchTokenizer
        >>> target = PixelTarget(PatchTokenizer(image_size=8, patch_size=4))
        >>> images = torch.rand(1, 3, 8, 8)
        >>> target(images).shape, torch.equal(target.to_pixels(target(images), images), images)
        (torch.Size([1, 4, 48]), True)
    """

    def __init__(self, tokenizer: Tokenizer, *, normalize: bool = False, blur: tuple[int, float] | None = None) -> None:
        self.tokenizer, self.normalize, self.blur = tokenizer, normalize, blur
        self._kernel = None if blur is None else _gaussian(*blur)
        self.dim = tokenizer.channels * math.prod(tokenizer.patch)
        if normalize and self.dim < 2:
            raise ValueError("normalize=True needs patches of at least 2 values: one value has no deviation")

    def _flat(self, images: Tensor) -> Float[Tensor, "b n p"]:
        if self._kernel is not None:
            images = _blurred(images, self._kernel)
        return self.tokenizer(images).movedim(2, -1).flatten(2)

    def __call__(self, images: Images) -> Float[Tensor, "b n p"]:
        """Return targets ``[B, N, p*q*C]`` of images ``[B, C, H, W]``."""
        flat = self._flat(images)
        if not self.normalize:
            return flat
        return (flat - flat.mean(-1, keepdim=True)) / _deviation(flat)

    def to_pixels(self, predictions: Float[Tensor, "b n p"], images: Images) -> Images:
        """Undo the normalisation with the statistics of ``images``, and put the patches together; a blur stays.

        Args:
            predictions: ``[B, N, p*q*C]`` in raster order.
            images: ``[B, C, H, W]`` that the predictions are of, not blurred.

        Returns:
            Images ``[B, C, H, W]`` in the same units as ``images``.
        """
        if self.normalize:
            flat = self._flat(images)
            predictions = predictions * _deviation(flat) + flat.mean(-1, keepdim=True)
        patches = predictions.reshape(*predictions.shape[:2], *self.tokenizer.patch, self.tokenizer.channels)
        return self.tokenizer.untokenize(patches.movedim(-1, 2))


def _deviation(flat: Float[Tensor, "b n p"]) -> Float[Tensor, "b n 1"]:
    return (flat.var(-1, keepdim=True) + _EPS).sqrt()


def _gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """Weights of a Gaussian at the centres of ``size`` pixels; they add up to 1."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"blur={(size, sigma)} must have a kernel of odd size, so that it has a middle pixel")
    if not 0 < sigma < math.inf:
        raise ValueError(f"blur={(size, sigma)} must have a positive standard deviation")
    weights = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return tuple(weight / sum(weights) for weight in weights)


def _blurred(images: Images, kernel: tuple[float, ...]) -> Images:
    """Convolve along one axis after the other. Sums of shifted images keep their precision under autocast."""
    reach = len(kernel) // 2
    for axis in range(images.ndim - 1, 1, -1):  # rows first, whose pixels lie side by side
        length, later = images.shape[axis], images.ndim - 1 - axis
        padded = F.pad(images, (0, 0) * later + (reach, reach))
        shifted = (weight * padded.narrow(axis, i, length) for i, weight in enumerate(kernel))
        images = sum(shifted, torch.zeros_like(images))
    return images


@checked
class PositionTarget:
    """Predict where each patch lies: class t is raster position t (APL, the patch puzzle).

    Targets are one-hot rows, the same for all images, so predictions are logits over positions.

    Args:
        tokenizer: cuts the images.

    Examples:
        >>> from ssl_blocks import PatchTokenizer
        >>> target = PositionTarget(PatchTokenizer(image_size=8, patch_size=4))
        >>> images = torch.rand(1, 3, 8, 8)
        >>> target(images)[0].argmax(-1)
        tensor([0, 1, 2, 3])
        >>> torch.equal(target.to_pixels(target(images), images), images)
        True
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dim = tokenizer.grid.num_tokens

    def __call__(self, images: Images) -> Float[Tensor, "b n p"]:
        """Return one-hot targets ``[B, N, N]``, one table that all images share."""
        table = torch.eye(self.dim, dtype=images.dtype, device=images.device)
        return table.expand(images.shape[0], -1, -1)

    def arrange(self, predictions: Float[Tensor, "b n p"]) -> Int[Tensor, "b p"]:
        """Lay out the puzzle as predicted: the patch at every place, -1 where no patch was put.

        Each patch goes to its likeliest place. Where several go to one, the one that is put there with the highest
        probability lies on top, and the others are lost.

        Args:
            predictions: logits ``[B, N, N]`` of patches in raster order.

        Returns:
            ``[B, N]`` raster index of the patch that lies at each place, or -1.
        """
        confidence, place = predictions.detach().float().softmax(-1).max(-1)
        put = torch.zeros_like(predictions, dtype=confidence.dtype).scatter(-1, place[..., None], confidence[..., None])
        best, patch = put.max(1)  # over the patches, for each place
        return torch.where(best > 0, patch, -1)

    def to_pixels(self, predictions: Float[Tensor, "b n p"], images: Images) -> Images:
        """Put the patches where the predictions say: the puzzle as solved, see `arrange`.

        Args:
            predictions: logits ``[B, N, N]`` of patches in raster order.
            images: ``[B, C, H, W]`` that the predictions are of.

        Returns:
            Images ``[B, C, H, W]``; places without a patch, and pixels of no patch, are 0.
        """
        arrangement = self.arrange(predictions)
        patches = gather_tokens(self.tokenizer(images), arrangement.clamp(min=0))
        is_put = (arrangement >= 0).reshape(*arrangement.shape, *[1] * (patches.ndim - 2))
        return self.tokenizer.untokenize(patches * is_put)


@checked
class EncoderTarget(nn.Module):
    """Predict what another encoder makes of the whole image: a moving average or a frozen one (data2vec, I-JEPA).

    The encoder sees all tokens of the image, in evaluation mode and without gradient. Its targets have no pictures.

    Args:
        encoder: any token encoder, or a `MovingAverage` of one.
        layers: how many of the last blocks' outputs are averaged (data2vec: 8).
        norm: of every output before that: ``"final"`` is the encoder's own final norm, ``"token"`` a layer norm
            without weights over each token (data2vec), ``None`` none.

    Raises:
        ValueError: if ``layers`` is not between 1 and the encoder's depth, or the norm is unknown.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=8, patch_size=4, depth=3, embed_dim=16, num_heads=2)
        >>> target = EncoderTarget(sb.MovingAverage(encoder, momentum=0.99), layers=2, norm="token")
        >>> target(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 4, 16])
    """

    def __init__(
        self, encoder: nn.Module, *, layers: Depth = 1, norm: Literal["final", "token"] | None = "final"
    ) -> None:
        super().__init__()
        if not callable(getattr(encoder.copy if isinstance(encoder, MovingAverage) else encoder, "encode", None)):
            raise TypeError(f"encoder must be a token encoder or a MovingAverage of one, got {type(encoder).__name__}")
        self.encoder = encoder if isinstance(encoder, MovingAverage) else encoder.requires_grad_(False)
        self.layers, self.norm = layers, norm
        self.dim: int = self._whole.dim
        if not 1 <= layers <= self._whole.depth:
            raise ValueError(f"layers={layers} must be at least 1 and at most the encoder's {self._whole.depth} blocks")
        self.train()

    @property
    def _whole(self) -> Any:
        return self.encoder.copy if isinstance(self.encoder, MovingAverage) else self.encoder

    def train(self, mode: bool = True) -> "EncoderTarget":
        """Stay in evaluation mode, except for the batch norms of a moving average."""
        super().train(False)
        if isinstance(self.encoder, MovingAverage):
            self.encoder.train(mode)
        return self

    @torch.no_grad()
    def forward(self, images: Images) -> Float[Tensor, "b n p"]:
        """Return targets ``[B, N, D]`` of images ``[B, C, H, W]``."""
        encoder = self._whole
        index = torch.arange(encoder.grid.num_tokens, device=images.device).expand(len(images), -1)
        hidden = encoder.encode(encoder.embed(images), index).hidden[-self.layers :]
        states = [self._normalised(x[:, encoder.num_prefix :]) for x in hidden]
        return torch.stack(states).mean(0)

    def _normalised(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.norm is None:
            return x
        out: Tensor = self._whole.norm(x) if self.norm == "final" else F.layer_norm(x, x.shape[-1:])
        return out
