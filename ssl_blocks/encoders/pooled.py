"""Any model of timm, by the one vector that it makes of an image."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TimmPooled(nn.Module):
    """See any timm model without its classifier as an encoder of features: what it returns, as it pools by itself.

    For evaluation of models that are neither token nor region encoders here: BEiT, mixers, hybrids, or vision
    transformers whose final norm sits behind the pooling.

    Args:
        module: the model, built with ``num_classes=0``.

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

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        name = type(module).__name__
        stem = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
        if not hasattr(module, "num_features") or not hasattr(module, "pretrained_cfg") or stem is None:
            raise TypeError(f"{name} is no image model of timm, such as beit_base_patch16_224")
        if getattr(module, "num_classes", 0):
            raise ValueError(f"{name} has a classifier of {module.num_classes} classes: build it with num_classes=0")
        self._modules["module"] = module
        self.dim: int = getattr(module, "head_hidden_size", None) or module.num_features  # type: ignore[assignment]
        self.channels = stem.in_channels

    @property
    def module(self) -> nn.Module:
        """The user's own model, unpatched."""
        module = self._modules["module"]
        assert module is not None
        return module

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What the model returns, ``[B, D]``.

        Raises:
            ValueError: if the model refuses images of this size or number of channels.
        """
        try:
            found: Tensor = self.module(images)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:
            size = "x".join(map(str, images.shape[1:]))
            raise ValueError(f"{type(self.module).__name__} refuses images of {size} pixels: {error}") from error
        return found
