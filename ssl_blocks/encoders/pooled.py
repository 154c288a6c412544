"""Any model of timm, by the one vector that it makes of an image."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.doors import checked
from ssl_blocks.encoders.adapter import Adapter
from ssl_blocks.encoders.protocol import FeatureEncoder
from ssl_blocks.encoders.timm_models import TimmStored, refusals_named


@checked
class TimmPooled(TimmStored[nn.Module]):
    """See any timm model without its classifier as an encoder of features: what it returns, as it pools by itself.

    For evaluation of models that are neither token nor region encoders here: BEiT, mixers, hybrids, or vision
    transformers whose final norm sits behind the pooling.

    Args:
        module: the model, built with ``num_classes=0``.
        model_args: arguments that ``timm.create_model`` needs to build it again, noted in exports.

    Raises:
        TypeError: if it is no image model of timm.
        ValueError: if it still has a classifier.

    Examples:
        >>> import timm
        >>> encoder = TimmPooled(timm.create_model("beit_base_patch16_224", depth=1, num_classes=0))
        >>> encoder.dim, encoder.pooling
        (768, "the model's own")
    """

    pooling = "the model's own"

    def __init__(self, module: nn.Module, *, model_args: Mapping[str, Any] | None = None) -> None:
        super().__init__(module)
        name = type(module).__name__
        stem = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
        if not hasattr(module, "num_features") or not hasattr(module, "pretrained_cfg") or stem is None:
            raise TypeError(f"{name} is no image model of timm, such as beit_base_patch16_224")
        if getattr(module, "num_classes", 0):
            raise ValueError(f"{name} has a classifier of {module.num_classes} classes: build it with num_classes=0")
        self.model_args = dict(model_args or {})
        self.dim: int = getattr(module, "head_hidden_size", None) or module.num_features  # type: ignore[assignment]
        self.channels = stem.in_channels

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What the model returns, ``[B, D]``.

        Raises:
            ValueError: if the model refuses images of this size or number of channels.
        """
        with refusals_named(self.module, images):
            found: Tensor = self.module(images)
        return found


def adapter_of(encoder: FeatureEncoder) -> Adapter[Any]:
    """The encoder itself; of one in a user's own code, what saves the model inside."""
    for one in (encoder, encoder.module):
        if isinstance(one, Adapter):
            return one
    if not hasattr(encoder.module, "pretrained_cfg"):
        raise TypeError(
            "encoder must be one of this library's, or its module a model of timm, to be exported, got "
            f"{type(encoder).__name__} with {type(encoder.module).__name__}"
        )
    return TimmPooled(encoder.module, model_args=getattr(encoder, "model_args", None))
