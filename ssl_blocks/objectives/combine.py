"""Several objectives on one encoder."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.objectives.objective import Objective, beside_zero, seen_by
from ssl_blocks.values import ObjectiveOutput, Views

SHARED = "shared"
Images = Float[Tensor, "b c *s"] | Views


@runtime_checkable
class SharedPass(Protocol):
    """A pass of the student that several objectives of a sum read, such as masked views for DINO and iBOT."""

    def draw(self, images: Any, /, *, generator: torch.Generator | None = None) -> Any:
        """Make the random choices of the pass."""
        ...

    def __call__(self, images: Any, draw: Any, /) -> Any:
        """Compute what objectives with ``reads_shared`` get as ``shared=``."""
        ...


@checked
class WeightedSum(Objective):
    """Train one encoder with several objectives: the loss is the weighted sum of theirs.

    RandSAC with DINO, which the RandSAC paper names as future work, is one such sum. The objectives stay whole, with
    heads, decoders and teachers of their own; the encoder that they share is trained and saved once. Each objective
    gets the images as it takes them: `Views`, or the first global view of them. Objectives with ``reads_shared`` also
    get one pass of the student that all of them read, as DINO and iBOT do in DINOv2.

    Over several processes each loss is divided by what all of them predict, as it is alone. Of accumulated parts of a
    batch the mean is taken, which is the same where every image has equally many predicted tokens (all but blobs).

    Args:
        objectives: by name; they hold the same model, ``objective.encoder.module``.
        weights: of the losses, by name; ``None`` means 1 for each.
        exports: name of the objective whose encoder and tokenizer the run leaves behind, such as DINO's teacher;
            ``None`` means the first.
        shared: the pass for objectives with ``reads_shared``; it gets the images as they come.

    Raises:
        ValueError: if there is no objective, a name is unfit for a module, weights or exports name other objectives,
            weights are negative or all zero, an objective holds another model, or nobody reads or gives a shared pass.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, depth=2, embed_dim=16, num_heads=2)
        >>> tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
        >>> common = {"encoder": encoder, "tokenizer": tokenizer}
        >>> size = {"grid": encoder.grid, "dim": 16, "depth": 1, "num_heads": 2}
        >>> squares = sb.SquarePartitioner(sides=(2,))
        >>> both = WeightedSum(
        ...     {
        ...         "mae": sb.mae(**common, decoder=sb.MaskTokenDecoder(**size)),
        ...         "randsac": sb.randsac(**common, partitioner=squares, decoder=sb.SegmentDecoder(**size)),
        ...     },
        ...     weights={"mae": 1.0, "randsac": 0.5},
        ... )
        >>> sorted(both(torch.rand(2, 3, 16, 16)).metrics)
        ['mae_loss', 'randsac_loss']
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        *,
        weights: Mapping[str, float] | None = None,
        exports: str | None = None,
        shared: SharedPass | None = None,
    ) -> None:
        super().__init__()
        self.weights = dict.fromkeys(objectives, 1.0) if weights is None else {k: float(v) for k, v in weights.items()}
        _check(objectives, self.weights)
        first = next(iter(objectives))
        self.exports = first if exports is None else exports
        if self.exports not in objectives:
            raise ValueError(f"exports={exports!r} must be one of the objectives {sorted(objectives)}")
        readers = [name for name, part in objectives.items() if part.reads_shared]
        if bool(readers) != (shared is not None):
            raise ValueError(f"shared={shared!r} must be given for objectives that read it, and these do: {readers}")
        self.encoder = objectives[first].encoder  # first, so that names of its parameters begin here
        self.tokenizer, self.shared = objectives[self.exports].tokenizer, shared
        self.objectives = nn.ModuleDict(objectives)
        self.takes_views = any(part.takes_views for part in objectives.values())
        self.register_state_dict_post_hook(_drop_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_restore_aliases)  # type: ignore[no-untyped-call]

    @property
    def parts(self) -> dict[str, Objective]:
        """The objectives by name."""
        return {name: part for name, part in self.objectives.items() if isinstance(part, Objective)}

    def draw(self, images: Images, *, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Draw for every objective in turn.

        Args:
            images: ``[B, C, H, W]``, or `Views` of them.
            generator: source of randomness on the images' device; ``None`` uses torch's default.
        """
        draws = {name: part.draw(seen_by(part, images), generator=generator) for name, part in self.parts.items()}
        return draws if self.shared is None else draws | {SHARED: self.shared.draw(images, generator=generator)}

    def outputs(self, images: Images, draw: Mapping[str, Any] | None = None) -> dict[str, ObjectiveOutput]:
        """What every objective returns by itself."""
        draw = self.draw(images) if draw is None else draw
        common = {} if self.shared is None else {SHARED: self.shared(images, draw[SHARED])}
        return {
            name: part(seen_by(part, images), draw[name], **(common if part.reads_shared else {}))
            for name, part in self.parts.items()
        }

    def forward(self, images: Images, draw: Mapping[str, Any] | None = None) -> ObjectiveOutput:
        """Add up the weighted losses.

        Args:
            images: ``[B, C, H, W]``, or `Views` of them.
            draw: the random choices by name; ``None`` makes them here.

        Returns:
            A row for each objective, whose prediction is its loss, for its predictions have shapes of their own (see
            ``outputs``); the metrics hold each loss and each objective's metrics under its name.
        """
        draw = self.draw(images) if draw is None else draw
        outputs = self.outputs(images, draw)
        terms = self._over_processes(outputs)
        # numbers, not a tensor of weights, which would be copied to the device in every step
        loss = torch.stack([self.weights[name] * part for name, part in zip(outputs, terms, strict=True)]).sum()
        losses = torch.stack(terms)
        metrics: dict[str, Tensor] = {}
        for name, out in outputs.items():
            metrics |= {f"{name}_loss": out.loss.detach()} | {f"{name}_{key}": v for key, v in out.metrics.items()}
        batch = images.batch if isinstance(images, Views) else len(images)
        rows = losses.detach()[None, :, None].expand(batch, -1, -1)
        return beside_zero(loss, rows, draw=draw, metrics=metrics)

    def _over_processes(self, outputs: Mapping[str, ObjectiveOutput]) -> list[Tensor]:
        """Losses whose mean over processes is each divided by what all of them predict."""
        losses = [out.loss for out in outputs.values()]
        alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
        if alone or not self.training or not torch.is_grad_enabled():  # one process may look at an objective by itself
            return losses
        counts = torch.stack([out.divisor.to(out.loss.dtype) for out in outputs.values()])
        total = counts.clone()
        torch.distributed.all_reduce(total)
        share = counts * torch.distributed.get_world_size() / torch.where(total > 0, total, 1.0)
        return [loss * factor for loss, factor in zip(losses, share, strict=True)]

    def export_encoder(self) -> FeatureEncoder:
        """What the objective named by ``exports`` leaves behind."""
        return self.parts[self.exports].export_encoder()


def _check(objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
    if not objectives:
        raise ValueError("objectives={} must hold at least one objective")
    for name in objectives:
        if not name.isidentifier() or name == SHARED:
            raise ValueError(
                f"objectives: the name {name!r} must be an identifier, such as 'randsac', and not {SHARED!r}"
            )
    if set(weights) != set(objectives):
        raise ValueError(f"weights={dict(weights)} must name the objectives {sorted(objectives)}")
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights={dict(weights)} must be finite, none below 0, and one above")
    (first, one), *others = objectives.items()
    for name, other in others:
        if other.encoder.module is not one.encoder.module:
            raise ValueError(
                f"objectives must share one model, but {name!r} holds another than {first!r}: give both one encoder"
            )


def _aliases(module: nn.Module) -> dict[str, str]:
    """Second names of parameters and buffers, and the first name of each."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for values in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        for name, value in values:
            known = first.setdefault(id(value), name)
            if known != name:
                found[name] = known
    return found


def _drop_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for alias in _aliases(module):
        state.pop(prefix + alias, None)


def _restore_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for alias, name in _aliases(module).items():
        if prefix + name in state:
            state.setdefault(prefix + alias, state[prefix + name])
