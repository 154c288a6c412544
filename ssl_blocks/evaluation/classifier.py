"""An encoder with a linear head, to be trained as a whole."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Classes
from ssl_blocks.doors import checked
from ssl_blocks.encoders import FeatureEncoder, TokenEncoder
from ssl_blocks.engine.optimizers import parameter_groups
from ssl_blocks.evaluation.layers import layer_ids, spared_names
from ssl_blocks.evaluation.pooling import encode_all
from ssl_blocks.parts.tokenize import Tokenizer


@checked
class Classifier(nn.Module):
    """Pool an encoder's features and classify them.

    Args:
        encoder: it is held, not copied; its parameters are found under ``backbone``.
        num_classes: of the head.
        fresh_norm: ``False`` classifies the encoder's own features, for token encoders the mean of normalised patch
            tokens (RandSAC). ``True`` averages patch tokens that are not normalised, and normalises the mean by a new
            layer norm, ``fc_norm`` (MAE's global pool); the encoder's final norm then takes no part.
        tokenizer: cuts the images as pretraining did, where it leaves pixels out; ``None`` hands over whole images.
        generator: source of the head's first weights, which are near 0, on the CPU; ``None`` uses torch's default.

    Raises:
        ValueError: if there are fewer than two classes, or ``fresh_norm`` is asked of an encoder without tokens.

    Examples:
        >>> from ssl_blocks.encoders import timm_vit
        >>> encoder = timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2)
        >>> Classifier(encoder, num_classes=3)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        *,
        num_classes: Classes,
        fresh_norm: bool = False,
        tokenizer: Tokenizer | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2")
        if fresh_norm and not isinstance(encoder, TokenEncoder):
            raise ValueError(
                f"fresh_norm=True averages tokens before their norm, but {type(encoder).__name__} has none: "
                "set fresh_norm=False"
            )
        self.num_classes, self.fresh_norm, self.tokenizer = num_classes, fresh_norm, tokenizer
        self.backbone = encoder.module
        self._encoder = (encoder,)  # in a tuple: its module is registered already, by the name above
        self.fc_norm = nn.LayerNorm(encoder.dim, eps=1e-6) if fresh_norm else nn.Identity()
        # without torch's own first weights, which would be drawn from its default generator
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, encoder.dim, num_classes)  # type: ignore[no-untyped-call]
        nn.init.trunc_normal_(self.head.weight, std=2e-5, generator=generator)  # MAE
        nn.init.zeros_(self.head.bias)

    @property
    def encoder(self) -> FeatureEncoder:
        """The adapter of the backbone."""
        return self._encoder[0]

    def forward(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k"]:
        """Logits ``[B, K]`` of normalised images ``[B, C, H, W]``."""
        x = images if self.tokenizer is None else self.tokenizer(images)
        if self.fresh_norm and isinstance(self.encoder, TokenEncoder):
            pooled = encode_all(self.encoder, x).hidden[-1][:, self.encoder.num_prefix :].mean(1)
        else:
            pooled = self.encoder.features(x)
        logits: Tensor = self.head(self.fc_norm(pooled))
        return logits

    def thaw(self, *, fixed_too: bool = True) -> None:
        """Make parameters trainable: all, positions and prefix tokens among them, save a norm that takes no part.

        Without ``fixed_too`` stays fixed what came fixed, such as a table of sines and cosines.
        """
        if fixed_too:
            self.requires_grad_(True)
        encoder = self.encoder
        if self.fresh_norm and isinstance(encoder, TokenEncoder):
            encoder.norm.requires_grad_(False)

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter: see `ssl_blocks.evaluation.layers.layer_ids`; the head is in the last layer."""
        ids = layer_ids(self.encoder)
        encoder = self.encoder
        last = encoder.depth + 1 if isinstance(encoder, TokenEncoder) else max(ids.values()) + 1
        own = {name: last for name, _ in self.named_parameters() if not name.startswith("backbone.")}
        return {f"backbone.{name}": layer for name, layer in ids.items()} | own

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: weight decay 0 for vectors, positions and prefix tokens; rates that fall with depth.

        Layer ``i`` of ``depth + 2`` learns at ``layer_decay ** (depth + 1 - i)`` times the rate (``lr_scale``, which
        timm's schedulers honour).

        Args:
            weight_decay: for all others.
            layer_decay: 1 lets all layers learn alike, and asks nothing of the encoder.

        Raises:
            ValueError: if the encoder does not tell the layers of its parameters.
        """
        spared = {f"backbone.{name}" for name in spared_names(self.encoder)}
        layers = None if layer_decay == 1 else self.layer_ids()
        return parameter_groups(
            self, weight_decay=weight_decay, no_weight_decay=spared, layers=layers, layer_decay=layer_decay
        )
