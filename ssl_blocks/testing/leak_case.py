"""What the leak test looks at: pixels by position, and which of them each prediction may and must see."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.modes import buffers_kept
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.testing.precise import seeded
from ssl_blocks.testing.role_case import mapped
from ssl_blocks.values import ObjectiveOutput, Views

CONTEXT = -1  # step of tokens that are given
HIDDEN = 2**40  # step of tokens that are neither given nor predicted: nothing may see them

Images = Float[Tensor, "b c *s"] | Views
Pixels = tuple[Tensor, ...]  # one ``[B, C, H, W]`` per view; of plain images there is one


def views_of(images: Images) -> Pixels:
    """All views; plain images are one."""
    return images.images if isinstance(images, Views) else (images,)


class NotApplicableError(ValueError):
    """Nothing here hides pixels from a prediction, so there is no leak to look for; the message says why."""


class LeakError(AssertionError):
    """A prediction sees pixels that it must not, or misses pixels that it must see."""


@dataclass(frozen=True)
class Subject:
    """What is tested: an objective or a function."""

    name: str
    module: nn.ModuleList  # models whose weights are shaken, and whose modes are switched
    tokenizer: Tokenizer  # cuts images, or those of the views that have its size
    target: Callable[[Any], Tensor] | None  # of every position, for images or views; ``None``: not told
    draw: Callable[[Images, torch.Generator | None], Any]
    compute: Callable[[Images, Any], ObjectiveOutput]
    takes_views: bool = True  # whether positions are counted through all views, or the first alone is looked at

    @cached_property
    def buffers(self) -> list[Tensor]:
        """Of all models: looked for once, for there are many looks."""
        return list(self.module.buffers())


@dataclass(frozen=True)
class LeakCase:
    """One draw of a subject, and who may see what in it."""

    subject: Subject
    pixels: Pixels  # leaves that gradients are taken of
    num_global: int | None  # of the views; ``None``: plain images
    is_cut: tuple[bool, ...]  # views that the tokenizer fits; positions are counted through these, one after the other
    draw: Any
    out: ObjectiveOutput
    step_of: Int[Tensor, "b n"]  # last step at which a position is predicted, `CONTEXT` or `HIDDEN`
    may: Bool[Tensor, "b t n"]  # positions that a row may see
    must: Bool[Tensor, "b t n"]  # those of them that it has to see, so that nothing dead passes

    @cached_property
    def plain(self) -> Pixels:
        """The pixels without gradients."""
        return tuple(x.detach() for x in self.pixels)

    def changed(self, noise: Pixels, where: Pixels) -> Pixels:
        """The pixels with noise on some of them."""
        return tuple(x + n * w for x, n, w in zip(self.plain, noise, where, strict=True))

    def images(self, pixels: Pixels) -> Images:
        """Pixels as the subject gets them."""
        return pixels[0] if self.num_global is None else Views(pixels, self.num_global)

    def per_token(self, values: Pixels) -> Float[Tensor, "b n"]:
        """Largest absolute value per position."""
        cut = [v for v, fits in zip(values, self.is_cut, strict=True) if fits]
        return torch.cat([self.subject.tokenizer(v).abs().flatten(2).amax(-1) for v in cut], dim=1)

    def cropped(self) -> Pixels:
        """Pixels of cut views that belong to no patch, bool."""
        everywhere = self.where(torch.ones_like(self.step_of, dtype=torch.bool))
        return tuple(~x & fits for x, fits in zip(everywhere, self.is_cut, strict=True))

    def where(self, changed: Bool[Tensor, "b n"]) -> Pixels:
        """Pixels of these positions, bool."""
        found, start = [], 0
        for x, fits in zip(self.plain, self.is_cut, strict=True):
            if not fits:
                found.append(torch.zeros_like(x, dtype=torch.bool))
                continue
            ones = torch.ones_like(self.subject.tokenizer(x))
            own = changed[:, start : start + ones.shape[1]]
            patches = ones * own.reshape(*own.shape, *[1] * (ones.ndim - 2))
            found.append(self.subject.tokenizer.untokenize(patches) != 0)
            start += ones.shape[1]
        return tuple(found)

    @cached_property
    def before(self) -> ObjectiveOutput:
        """What comes of the pixels as they are."""
        return self.outcome(self.plain)

    @torch.no_grad()
    def predict(self, pixels: Pixels, draw: Any = None) -> Float[Tensor, "b t p"]:
        """Predict with the same dropout in every call, and leave buffers as they were."""
        return self.outcome(pixels, draw).predictions

    @torch.no_grad()
    def outcome(self, pixels: Pixels, draw: Any = None) -> ObjectiveOutput:
        """All that comes of pixels, as for `predict`."""
        return _computed(self.subject, self.images(pixels), self.draw if draw is None else draw)

    def noise(self, generator: torch.Generator | None) -> Pixels:
        """Noise as large as the pixels of each channel."""
        return tuple(_scale(x) * noise_like(x, generator) for x in self.plain)

    def position(self, image: int, position: int) -> str:
        """What a message calls a position of an image."""
        given = self.out.given
        return f"position {position} of {self.step_name(image, position)}" + (
            "" if given is None or given.ndim == 2 else ", as its row of given has it"
        )

    def step_name(self, image: int, position: int) -> str:
        """What a message calls the tokens that a position belongs to."""
        step = int(self.step_of[image, position])
        names = {CONTEXT: "the given tokens", HIDDEN: "tokens that are neither given nor predicted"}
        return names.get(step, f"step {step}")


def make_case(subject: Subject, images: Images, generator: torch.Generator | None, *, graph: bool = True) -> LeakCase:
    """Draw, compute, and find out who may see what; without ``graph`` no gradients, and a large batch fits."""
    num_global = images.num_global if isinstance(images, Views) else None
    pixels = tuple(view.detach().clone().requires_grad_(graph) for view in views_of(images))
    seen = pixels if subject.takes_views else pixels[:1]
    fits = [_fits(subject.tokenizer, view, needed=number == 0) for number, view in enumerate(seen)]
    is_cut = (*fits, *[False] * (len(pixels) - len(seen)))
    own = pixels[0] if num_global is None else Views(pixels, num_global)
    draw = subject.draw(own, generator)
    with torch.set_grad_enabled(graph):
        # by another seed than all that follows: forward has its draw, and draws nothing more but dropout
        out = _computed(subject, own, draw, seed=0 if subject.module.training else 1)
    if not bool(out.is_target.any()):
        raise ValueError("nothing is predicted in this draw: give more images or more segments")
    tokens = subject.tokenizer.grid.num_tokens
    _check_rows(out, tokens * sum(is_cut))
    step_of, may, must = visible(out, tokens, sum(is_cut))
    case = LeakCase(subject, pixels, num_global, is_cut, draw, out, step_of, may, must)
    again = case.before.predictions
    if again.shape != out.predictions.shape or not torch.allclose(again, out.predictions, rtol=1e-3, atol=1e-4):
        raise LeakError(
            "predictions differ between two calls with the same images and draw: does forward use its draw?"
        )
    return case


def _check_rows(out: ObjectiveOutput, tokens: int) -> None:
    named = out.index[out.is_target]
    if int(named.min()) < 0 or int(named.max()) >= tokens:
        found = f"{int(named.min())}..{int(named.max())}"
        raise ValueError(f"index must name positions from 0 to {tokens - 1}, got {found}")
    wrong = ~out.predictions.isfinite().all(-1) & out.is_target
    for image, row in wrong.nonzero()[:1].tolist():
        raise ValueError(
            f"the prediction of position {int(out.index[image, row])} in image {image} is not finite, so nothing can "
            "be said of it: does its attention see no token at all?"
        )


def _computed(subject: Subject, images: Images, draw: Any, seed: int = 0) -> ObjectiveOutput:
    with seeded(seed, views_of(images)[0].device), buffers_kept(subject.buffers):
        return subject.compute(images, draw)


def _scale(x: Tensor) -> Tensor:
    """Deviation of every channel over batch and places, 1 where nothing differs."""
    own: Tensor = x.double().std(dim=(0, *range(2, x.ndim)), keepdim=True, correction=0)
    return torch.where(own > 0, own, 1.0).to(x.dtype)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Plain noise of a tensor's shape, drawn in double precision."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float64).to(x.dtype)


def some_more(images: Images, count: int, generator: torch.Generator | None) -> Tensor | Views:
    """A batch of ``count`` images that differ: those that were given, over and over, under noise."""
    many = tuple(
        x[torch.arange(count, device=x.device) % len(x)]
        + _scale(x) / 4 * noise_like(x[:1].expand(count, *x.shape[1:]), generator)
        for x in (view.detach() for view in views_of(images))
    )
    return Views(many, images.num_global) if isinstance(images, Views) else many[0]


def cast(images: Images, dtype: torch.dtype) -> Tensor | Views:
    """Images of another precision."""
    found: Tensor | Views = mapped(images, lambda x: x.to(dtype))
    return found


def _fits(tokenizer: Tokenizer, view: Tensor, *, needed: bool) -> bool:
    try:
        tokenizer(view.detach())
    except ValueError:
        if needed:
            raise
        return False
    return True


def visible(
    out: ObjectiveOutput, tokens: int, views: int
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b t n"], Bool[Tensor, "b t n"]]:
    """Step of every position, which positions each row may see, and which it must.

    A position that several rows predict is seen after the last of them alone. What other views give may be seen, but
    need not.
    """
    batch, given = len(out.index), out.given
    nowhere = torch.full((batch, tokens * views), CONTEXT - 1, device=out.index.device)
    steps = torch.where(out.is_target, out.step, CONTEXT - 1)
    last = nowhere.scatter_reduce(1, out.index.clamp(0, tokens * views - 1), steps, "amax")
    at_first = torch.full_like(last, CONTEXT)
    if given is not None and given.ndim == 2:
        at_first = torch.where(given, CONTEXT, HIDDEN)
    step_of = torch.where(last >= 0, last, at_first)
    if given is not None and given.ndim == 3:
        may = given.expand(-1, out.index.shape[1], -1)
        return step_of, may, may
    may = step_of[:, None] < out.step[..., None]
    place = torch.arange(tokens * views, device=out.index.device)
    return step_of, may, may & (out.index[..., None] // tokens == place // tokens)
