"""The checks of an encoder, one promise each: they return nothing, or why they do not apply, or raise."""

import io
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_blocks.modes import modes_kept
from ssl_blocks.testing.encoder_case import NUM_STEPS, Case, EncoderError
from ssl_blocks.values import gather_tokens

_NOISE_TOLERANCE = 1e-6  # of the largest permitted move


def _check_native(case: Case) -> str | None:
    encoder = case.encoder
    encoded = encoder.encode(encoder.embed(case.images), case.raster())
    shape = (len(case.images), encoder.num_prefix + case.num_tokens, encoder.dim)
    if len(encoded.hidden) != encoder.depth:
        raise EncoderError(f"encode gives {len(encoded.hidden)} hidden states, expected depth={encoder.depth}")
    for states in (encoded.input, *encoded.hidden, encoded.final):
        if tuple(states.shape) != shape:
            raise EncoderError(f"encode gives states of shape {tuple(states.shape)}, expected [B, P + n, D] = {shape}")
    if not case.close(encoder.norm(encoded.hidden[-1]), encoded.final):
        raise EncoderError("final is not the last hidden state normalised by encoder.norm")
    if case.native is None:
        return "no native output given"
    expected = case.native(case.images)
    if not case.close(encoded.final, expected):
        raise EncoderError(f"encode does not reproduce the model's own output: {_difference(encoded.final, expected)}")
    return None


def _difference(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    return f"largest difference {float((found - expected).detach().abs().max()):.2g}"


def _check_embedding(case: Case) -> None:
    encoder, patches = case.encoder, case.tokenizer()(case.images)
    whole = encoder.embed(case.images)
    changed = case.steps()[:, encoder.num_prefix :] < NUM_STEPS // 2
    new = patches + case.noise(*patches.shape) * changed[:, :, None, None, None]
    for name, before, after in (
        ("images", whole, encoder.embed(case.tokenizer().untokenize(new))),
        ("patches", encoder.embed(patches), encoder.embed(new)),
    ):
        moved = (after - before).detach().abs().amax(-1) > case.tolerance * whole.detach().abs().max()
        for image, position in (moved != changed).nonzero()[:1].tolist():
            does = "changes with pixels of other patches" if moved[image, position] else "does not see its own pixels"
            raise EncoderError(f"embed of {name}: the token at position {position} of image {image} {does}")
    order = case.shuffled()[:, : max(1, case.num_tokens // 2)]
    some = torch.stack([image[index] for image, index in zip(patches, order, strict=True)])
    if not case.close(encoder.embed(patches), whole) or not case.close(
        encoder.embed(some), gather_tokens(whole, order)
    ):
        raise EncoderError("images and their patches embed differently")


def _check_input(case: Case) -> None:
    """What enters the first block has not been mixed yet: a row sees its own token, and no other."""
    tokens = case.tokens().requires_grad_()
    entering = case.encoder.encode(tokens, case.raster()).input
    rows = torch.arange(entering.shape[1], device=tokens.device) % 2 == 0
    weighted = (entering * case.noise(*entering.shape))[:, rows]
    (felt,) = torch.autograd.grad(weighted.sum() + 0 * tokens.sum(), tokens)
    if not bool(((felt != 0).any(-1) == rows[case.encoder.num_prefix :]).all()):
        raise EncoderError("input is not what enters the first block: a row must see its own token, and no other")


def _check_features(case: Case) -> None:
    encoder, length = case.encoder, case.encoder.num_prefix + case.num_tokens
    causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=case.images.device).tril()
    masks: dict[str, tuple[Tensor, ...]] = {"": (), " under a mask": (causal,)}
    for name, pixels in (("images", case.images), ("patches", case.tokenizer()(case.images))):
        for how, mask in masks.items():
            final = encoder.encode(encoder.embed(case.images), case.raster(), *mask).final
            if not case.close(encoder.features(pixels, *mask), final[:, encoder.num_prefix :].mean(1)):
                raise EncoderError(f"features of {name}{how} are not the mean over normalised patch tokens")


def _check_order(case: Case) -> None:
    encoder, tokens, order, p = case.encoder, case.tokens(), case.shuffled(), case.encoder.num_prefix
    for index, which in ((case.raster(), "with their positions"), (None, "without positions (index=None)")):
        straight = encoder.encode(tokens, index).final
        permuted = encoder.encode(gather_tokens(tokens, order), None if index is None else order).final
        expected = torch.cat([straight[:, :p], gather_tokens(straight[:, p:], order)], dim=1)
        if not case.close(permuted, expected):
            raise EncoderError(
                f"tokens in another order, {which}, give other outputs ({_difference(permuted, expected)}): are "
                "positions looked up by index, or by place in the sequence?"
            )


def _check_subset(case: Case) -> None:
    encoder, tokens, p = case.encoder, case.tokens(), case.encoder.num_prefix
    index = case.shuffled()[:, : max(1, case.num_tokens // 2)]
    subset = encoder.encode(gather_tokens(tokens, index), index).final
    seen = torch.zeros(len(tokens), p + case.num_tokens, dtype=torch.bool, device=tokens.device)
    seen[:, :p] = True
    seen.scatter_(1, index + p, True)
    mask = seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)
    masked = encoder.encode(tokens, case.raster(), mask).final
    expected = torch.cat([masked[:, :p], gather_tokens(masked[:, p:], index)], dim=1)
    if not case.close(subset, expected):
        raise EncoderError(
            f"a subset of tokens gives other outputs than the same tokens with all others hidden by the mask "
            f"({_difference(subset, expected)})"
        )


def _check_positions(case: Case) -> None:
    encoder, tokens = case.encoder, case.tokens()
    index = case.shuffled()
    here, there = (encoder.encode(tokens, where).final for where in (index, index.roll(1, 1)))
    nowhere = encoder.encode(tokens, None).final
    for name, other in (("other positions", there), ("no positions (index=None)", nowhere)):
        same = bool((here == other).all())
        if same and case.has_positions:
            raise EncoderError(f"{name} give the same output: does encode use its index?")
        if not case.close(here, other) and not case.has_positions:
            raise EncoderError(f"{name} give another output, though has_positions=False")


def _check_masks(case: Case) -> None:
    step = case.steps()
    mask = (step[:, None, None, :] <= step[:, None, :, None]).detach()
    tokens = case.tokens().requires_grad_()
    p = case.encoder.num_prefix
    final = case.encoder.encode(tokens, case.raster(), mask).final
    weights = case.noise(*final.shape)  # a plain sum over a layer norm is constant
    for image in range(len(tokens)):
        for now in range(-1 if p else 0, NUM_STEPS):
            rows = step[image] == now
            (felt,) = torch.autograd.grad(
                (final[image] * weights[image] * rows[:, None]).sum(), tokens, retain_graph=True, allow_unused=True
            )
            felt = torch.zeros_like(tokens) if felt is None else felt
            _judge(case, felt.abs().amax(-1), step[:, p:], image, now)
    for training in (False, True):
        _check_noise(case, mask, step, training=training)


def _judge(case: Case, felt: Float[Tensor, "b n"], step: Int[Tensor, "b n"], image: int, now: int) -> None:
    who = f"by gradient: {_rows(now)} of image {image}"
    for other in (felt != 0).any(1).nonzero().flatten().tolist():
        if other != image:
            raise EncoderError(f"{who} see tokens of image {other} in the same batch")
    may = step[image] <= now
    for position in ((felt[image] != 0) & ~may).nonzero().flatten()[:1].tolist():
        raise EncoderError(f"{who} see position {position}, which the mask hides: is the mask used as it is given?")
    for position in ((felt[image] == 0) & may).nonzero().flatten()[:1].tolist():
        raise EncoderError(f"{who} do not see position {position}, which the mask lets them see")


def _rows(step: int) -> str:
    return "prefix tokens" if step < 0 else f"tokens of step {step}"


def _check_noise(case: Case, mask: Bool[Tensor, "b 1 s s"], step: Int[Tensor, "b s"], *, training: bool) -> None:
    """Put noise on the tokens of one step, and then of one image, and see which outputs move."""
    tokens, p, when = case.tokens(), case.encoder.num_prefix, " in training mode" if training else ""
    before = _run(case, tokens, mask, training)
    noise = case.noise(*tokens.shape)
    own = torch.arange(len(tokens), device=tokens.device)[:, None]
    changes = [(f"tokens of step {s}", step[:, p:] == s, step >= s) for s in range(NUM_STEPS)]
    changes += [(f"tokens of image {i}", (own == i).expand(-1, tokens.shape[1]), own == i) for i in range(len(tokens))]
    for name, changed, may_move in changes:
        moved = (_run(case, tokens + noise * changed[..., None], mask, training) - before).abs().amax(-1)
        leak = ~may_move & (moved > _NOISE_TOLERANCE * moved.max())
        for image, row in leak.nonzero()[:1].tolist():
            raise EncoderError(
                f"by noise{when}: {_rows(int(step[image, row]))} of image {image} change with {name}, which the mask "
                "or the batch keeps apart"
            )


@torch.no_grad()
def _run(case: Case, tokens: Tensor, mask: Tensor | None, training: bool) -> Tensor:
    """Encode with the same dropout in every call."""
    with torch.random.fork_rng(devices=[tokens.device] if tokens.device.type == "cuda" else []):
        torch.manual_seed(0)
        with modes_kept(case.model(), training=training):
            final: Tensor = case.encoder.encode(tokens, case.raster(), mask).final
    return final


def _check_state(case: Case) -> None:
    module, encoder = case.encoder.module, case.encoder
    outside = {id(p) for p in case.parameters.values()} - {id(p) for p in module.parameters()}
    if outside:
        names = sorted(name for name, p in case.parameters.items() if id(p) in outside)
        raise EncoderError(f"parameters outside encoder.module would not be exported: {', '.join(names)}")
    before = encoder.features(case.images).detach()
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(case.noise(*parameter.shape).to(parameter.dtype) * 0.1)
    if torch.equal(encoder.features(case.images), before):
        raise EncoderError("features do not change with the weights of encoder.module: do they come from a copy?")
    saved.seek(0)
    try:
        module.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    except RuntimeError as error:
        raise EncoderError(f"encoder.module does not load its own state_dict strictly: {error}") from error
    if not torch.equal(encoder.features(case.images), before):
        raise EncoderError("features differ after encoder.module has loaded the state_dict that it had saved")


def _check_checkpointing(case: Case) -> str | None:
    encoder = case.encoder
    if not hasattr(encoder, "set_grad_checkpointing"):
        return "the encoder has no set_grad_checkpointing"
    was, found = bool(getattr(encoder, "grad_checkpointing", False)), []
    step = case.steps()
    mask = step[:, None, None, :] <= step[:, None, :, None]
    weights = case.noise(len(case.images), step.shape[1], encoder.dim)
    wanted = {name: parameter for name, parameter in case.parameters.items() if parameter.requires_grad}
    try:
        for enable in (False, True):
            encoder.set_grad_checkpointing(enable)
            final = encoder.encode(encoder.embed(case.images), case.raster(), mask).final
            found.append(torch.autograd.grad((final * weights).sum(), list(wanted.values()), allow_unused=True))
    finally:
        encoder.set_grad_checkpointing(was)
    for name, plain, recomputed in zip(wanted, *found, strict=True):
        if (plain is None) != (recomputed is None) or (plain is not None and not case.close(recomputed, plain)):
            raise EncoderError(f"gradient checkpointing changes the gradient of {name} under a mask")
    return None


def _check_compilation(case: Case) -> str | None:
    if not case.compiles:
        return "not asked for"
    encoder, step = case.encoder, case.steps()
    mask = step[:, None, None, :] <= step[:, None, :, None]

    def run(images: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        final: Tensor = encoder.encode(encoder.embed(images), index, mask).final
        return final

    arguments = (case.images, case.raster(), mask)
    try:
        compiled = torch.compile(run, fullgraph=True, backend="eager")(*arguments)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise EncoderError(f"embed and encode do not compile in one graph: {reason}") from error
    if not case.close(compiled, run(*arguments)):
        raise EncoderError("embed and encode give another output when compiled")
    return None


CHECKS: dict[str, Callable[[Case], str | None]] = {
    "native output": _check_native,
    "embedding": _check_embedding,
    "features": _check_features,
    "masks": _check_masks,
    "order": _check_order,
    "subset": _check_subset,
    "positions": _check_positions,
    "input": _check_input,
    "saving": _check_state,
    "checkpointing": _check_checkpointing,
    "compilation": _check_compilation,
}
