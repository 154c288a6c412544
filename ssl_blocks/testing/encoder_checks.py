"""The checks of an encoder."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import PatchTokenizer
from ssl_blocks.testing.precise import seeded
from ssl_blocks.testing.role_case import Role, RoleError, apart
from ssl_blocks.values import gather_tokens

NUM_STEPS = 4  # segments of the causal masks
_NOISE_TOLERANCE = 1e-6  # of the largest permitted move


def _causal(step: Int[Tensor, "b s"]) -> Bool[Tensor, "b 1 s s"]:
    return step[:, None, None, :] <= step[:, None, :, None]


def _rows(step: int) -> str:
    return "prefix tokens" if step < 0 else f"tokens of step {step}"


@dataclass(frozen=True)
class Checks(Role):
    """An encoder under test, what is drawn for it, and one promise each."""

    name = "encoder"
    model: nn.Module  # whatever modes and parameters belong to
    native: Callable[[Tensor], Tensor] | None
    images: Tensor
    generator: torch.Generator | None
    tolerance: float
    has_positions: bool
    compiles: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        num: int = self.part.grid.num_tokens
        return num

    def _tokens(self) -> Float[Tensor, "b n d"]:
        tokens: Tensor = self.part.embed(self.images)
        return tokens.detach()

    def _tokenizer(self) -> PatchTokenizer:
        patch, channels = self.part.patch, self.part.channels
        return PatchTokenizer(image_size=tuple(self.images.shape[2:]), patch_size=patch, channels=channels)

    def _raster(self) -> Int[Tensor, "b n"]:
        return torch.arange(self.num_tokens, device=self.images.device).expand(len(self.images), -1)

    def _shuffled(self) -> Int[Tensor, "b n"]:
        return self._noise(len(self.images), self.num_tokens).argsort(1)

    def _noise(self, *shape: int) -> Tensor:
        device = self.images.device if self.generator is None else self.generator.device
        drawn = torch.randn(shape, generator=self.generator, device=device)
        return drawn.to(self.images.device, self.images.dtype)

    def _steps(self) -> Int[Tensor, "b s"]:
        """A random step of each token, other ones in every image; -1 for the prefix."""
        of_rank = torch.arange(self.num_tokens, device=self.images.device) * NUM_STEPS // self.num_tokens
        return F.pad(of_rank[self._shuffled()], (self.part.num_prefix, 0), value=-1)

    def _apart(self, found: Tensor, expected: Tensor) -> str | None:
        return apart(found, expected, self.tolerance)

    def native_output(self) -> str | None:
        """The model's own output is reproduced."""
        encoder = self.part
        encoded = encoder.encode(encoder.embed(self.images), self._raster())
        shape = (len(self.images), encoder.num_prefix + self.num_tokens, encoder.dim)
        if len(encoded.hidden) != encoder.depth:
            raise RoleError(f"encode gives {len(encoded.hidden)} hidden states, expected depth={encoder.depth}")
        for states in (encoded.input, *encoded.hidden, encoded.final):
            if tuple(states.shape) != shape:
                raise RoleError(f"encode gives states of shape {tuple(states.shape)}, expected [B, P + n, D] = {shape}")
        if self._apart(encoder.norm(encoded.hidden[-1]), encoded.final):
            raise RoleError("final is not the last hidden state normalised by encoder.norm")
        if self.native is None:
            return "no native output given"
        difference = self._apart(encoded.final, self.native(self.images))
        if difference:
            raise RoleError(f"encode does not reproduce the model's own output: {difference}")
        return None

    def embedding(self) -> None:
        """A token sees the pixels of its own patch, and images and patches embed alike."""
        encoder, patches = self.part, self._tokenizer()(self.images)
        whole = encoder.embed(self.images)
        changed = self._steps()[:, encoder.num_prefix :] < NUM_STEPS // 2
        new = patches + self._noise(*patches.shape) * changed.reshape(*changed.shape, *[1] * (patches.ndim - 2))
        for name, before, after in (
            ("images", whole, encoder.embed(self._tokenizer().untokenize(new))),
            ("patches", encoder.embed(patches), encoder.embed(new)),
        ):
            moved = (after - before).detach().abs().amax(-1) > self.tolerance * whole.detach().abs().max()
            for image, position in (moved != changed).nonzero()[:1].tolist():
                does = (
                    "changes with pixels of other patches" if moved[image, position] else "does not see its own pixels"
                )
                raise RoleError(f"embed of {name}: the token at position {position} of image {image} {does}")
        order = self._shuffled()[:, : max(1, self.num_tokens // 2)]
        some = torch.stack([image[index] for image, index in zip(patches, order, strict=True)])
        if self._apart(encoder.embed(patches), whole) or self._apart(encoder.embed(some), gather_tokens(whole, order)):
            raise RoleError("images and their patches embed differently")

    def features(self) -> None:
        """Features are the mean over normalised patch tokens, under a mask, too."""
        encoder, length = self.part, self.part.num_prefix + self.num_tokens
        causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.images.device).tril()
        masks: dict[str, tuple[Tensor, ...]] = {"": (), " under a mask": (causal,)}
        for name, pixels in (("images", self.images), ("patches", self._tokenizer()(self.images))):
            for how, mask in masks.items():
                final = encoder.encode(encoder.embed(self.images), self._raster(), *mask).final
                if self._apart(encoder.features(pixels, *mask), final[:, encoder.num_prefix :].mean(1)):
                    raise RoleError(f"features of {name}{how} are not the mean over normalised patch tokens")

    def masks(self) -> None:
        """What a mask hides has no say, and what it shows has one."""
        step = self._steps()
        mask = _causal(step)
        tokens = self._tokens().requires_grad_()
        p = self.part.num_prefix
        final = self.part.encode(tokens, self._raster(), mask).final
        weights = self._noise(*final.shape)  # a plain sum over a layer norm is constant
        for image in range(len(tokens)):
            for now in range(-1 if p else 0, NUM_STEPS):
                rows = step[image] == now
                (felt,) = torch.autograd.grad(
                    (final[image] * weights[image] * rows[:, None]).sum(), tokens, retain_graph=True, allow_unused=True
                )
                felt = torch.zeros_like(tokens) if felt is None else felt
                self._judge(felt.abs().amax(-1), step[:, p:], image, now)
        for training in (False, True):
            self._check_noise(mask, step, training=training)

    def _judge(self, felt: Float[Tensor, "b n"], step: Int[Tensor, "b n"], image: int, now: int) -> None:
        who = f"by gradient: {_rows(now)} of image {image}"
        for other in (felt != 0).any(1).nonzero().flatten().tolist():
            if other != image:
                raise RoleError(f"{who} see tokens of image {other} in the same batch")
        may = step[image] <= now
        for position in ((felt[image] != 0) & ~may).nonzero().flatten()[:1].tolist():
            raise RoleError(f"{who} see position {position}, which the mask hides: is the mask used as it is given?")
        for position in ((felt[image] == 0) & may).nonzero().flatten()[:1].tolist():
            raise RoleError(f"{who} do not see position {position}, which the mask lets them see")

    def _check_noise(self, mask: Bool[Tensor, "b 1 s s"], step: Int[Tensor, "b s"], *, training: bool) -> None:
        """Put noise on the tokens of one step, and then of one image, and see which outputs move."""
        tokens, p, when = self._tokens(), self.part.num_prefix, " in training mode" if training else ""
        before = self._run(tokens, mask, training)
        noise = self._noise(*tokens.shape)
        own = torch.arange(len(tokens), device=tokens.device)[:, None]
        changes = [(f"tokens of step {s}", step[:, p:] == s, step >= s) for s in range(NUM_STEPS)]
        changes += [
            (f"tokens of image {i}", (own == i).expand(-1, tokens.shape[1]), own == i) for i in range(len(tokens))
        ]
        for name, changed, may_move in changes:
            moved = (self._run(tokens + noise * changed[..., None], mask, training) - before).abs().amax(-1)
            leak = ~may_move & (moved > _NOISE_TOLERANCE * moved.max())
            for image, row in leak.nonzero()[:1].tolist():
                raise RoleError(
                    f"by noise{when}: {_rows(int(step[image, row]))} of image {image} change with {name}, which the "
                    "mask or the batch keeps apart"
                )

    @torch.no_grad()
    def _run(self, tokens: Tensor, mask: Tensor | None, training: bool) -> Tensor:
        """Encode with the same dropout in every call."""
        with seeded(0, tokens.device), modes_kept(self.model, training=training):
            final: Tensor = self.part.encode(tokens, self._raster(), mask).final
        return final

    def order(self) -> None:
        """Tokens in another order give the same outputs in that order."""
        encoder, tokens, order, p = self.part, self._tokens(), self._shuffled(), self.part.num_prefix
        for index, which in ((self._raster(), "with their positions"), (None, "without positions (index=None)")):
            straight = encoder.encode(tokens, index).final
            permuted = encoder.encode(gather_tokens(tokens, order), None if index is None else order).final
            expected = torch.cat([straight[:, :p], gather_tokens(straight[:, p:], order)], dim=1)
            difference = self._apart(permuted, expected)
            if difference:
                raise RoleError(
                    f"tokens in another order, {which}, give other outputs ({difference}): are "
                    "positions looked up by index, or by place in the sequence?"
                )

    def subset(self) -> None:
        """A subset gives what it gives where all others are hidden."""
        encoder, tokens, p = self.part, self._tokens(), self.part.num_prefix
        index = self._shuffled()[:, : max(1, self.num_tokens // 2)]
        subset = encoder.encode(gather_tokens(tokens, index), index).final
        seen = torch.zeros(len(tokens), p + self.num_tokens, dtype=torch.bool, device=tokens.device)
        seen[:, :p] = True
        seen.scatter_(1, index + p, True)
        mask = seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)
        masked = encoder.encode(tokens, self._raster(), mask).final
        expected = torch.cat([masked[:, :p], gather_tokens(masked[:, p:], index)], dim=1)
        difference = self._apart(subset, expected)
        if difference:
            raise RoleError(
                f"a subset of tokens gives other outputs than the same tokens with all others hidden by the mask "
                f"({difference})"
            )

    def positions(self) -> None:
        """Positions matter, or do not where that is said."""
        encoder, tokens = self.part, self._tokens()
        index = self._shuffled()
        here, there = (encoder.encode(tokens, where).final for where in (index, index.roll(1, 1)))
        nowhere = encoder.encode(tokens, None).final
        for name, other in (("other positions", there), ("no positions (index=None)", nowhere)):
            same = bool((here == other).all())
            if same and self.has_positions:
                raise RoleError(f"{name} give the same output: does encode use its index?")
            if self._apart(here, other) and not self.has_positions:
                raise RoleError(f"{name} give another output, though has_positions=False")

    def input(self) -> None:
        """What enters the first block has not been mixed yet: a row sees its own token, and no other."""
        tokens = self._tokens().requires_grad_()
        entering = self.part.encode(tokens, self._raster()).input
        rows = torch.arange(entering.shape[1], device=tokens.device) % 2 == 0
        weighted = (entering * self._noise(*entering.shape))[:, rows]
        (felt,) = torch.autograd.grad(weighted.sum() + 0 * tokens.sum(), tokens)
        if not bool(((felt != 0).any(-1) == rows[self.part.num_prefix :]).all()):
            raise RoleError("input is not what enters the first block: a row must see its own token, and no other")

    def saving(self) -> None:
        """Weights are all the model's, and come back as they were."""
        module, encoder = self.part.module, self.part
        inside = {id(p) for p in module.parameters()}
        outside = sorted(name for name, p in self.model.named_parameters() if id(p) not in inside)
        if outside:
            raise RoleError(f"parameters outside encoder.module would not be exported: {', '.join(outside)}")
        before = encoder.features(self.images).detach()
        saved = io.BytesIO()
        torch.save(module.state_dict(), saved)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(self._noise(*parameter.shape).to(parameter.dtype) * 0.1)
        if torch.equal(encoder.features(self.images), before):
            raise RoleError("features do not change with the weights of encoder.module: do they come from a copy?")
        saved.seek(0)
        try:
            module.load_state_dict(torch.load(saved, weights_only=True), strict=True)
        except RuntimeError as error:
            raise RoleError(f"encoder.module does not load its own state_dict strictly: {error}") from error
        if not torch.equal(encoder.features(self.images), before):
            raise RoleError("features differ after encoder.module has loaded the state_dict that it had saved")

    def checkpointing(self) -> str | None:
        """Recomputation changes no gradient."""
        encoder = self.part
        if not hasattr(encoder, "set_grad_checkpointing"):
            return "the encoder has no set_grad_checkpointing"
        was, found = bool(getattr(encoder, "grad_checkpointing", False)), []
        step = self._steps()
        mask, weights = _causal(step), self._noise(*step.shape, encoder.dim)
        wanted = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        try:
            for enable in (False, True):
                encoder.set_grad_checkpointing(enable)
                final = encoder.encode(encoder.embed(self.images), self._raster(), mask).final
                found.append(torch.autograd.grad((final * weights).sum(), list(wanted.values()), allow_unused=True))
        finally:
            encoder.set_grad_checkpointing(was)
        for name, plain, recomputed in zip(wanted, *found, strict=True):
            if (plain is None) != (recomputed is None) or (plain is not None and self._apart(recomputed, plain)):
                raise RoleError(f"gradient checkpointing changes the gradient of {name} under a mask")
        return None

    def compilation(self) -> str | None:
        """Embedding and encoding compile in one graph."""
        if not self.compiles:
            return "not asked for"
        encoder = self.part

        def run(images: Tensor, index: Tensor, mask: Tensor) -> Tensor:
            final: Tensor = encoder.encode(encoder.embed(images), index, mask).final
            return final

        arguments = (self.images, self._raster(), _causal(self._steps()))
        try:
            compiled = torch.compile(run, fullgraph=True, backend="eager")(*arguments)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise RoleError(f"embed and encode do not compile in one graph: {reason}") from error
        if self._apart(compiled, run(*arguments)):
            raise RoleError("embed and encode give another output when compiled")
        return None
