"""Weights in bfloat16 that are trained in single precision."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def rounded_weights(model: nn.Module) -> list[nn.Parameter]:
    """Trained weights of linear maps and convolutions: those that autocast rounds in every step."""
    kinds = (nn.Linear, _ConvNd)
    found = [p for part in model.modules() if isinstance(part, kinds) for p in part.parameters(recurse=False)]
    return [parameter for parameter in dict.fromkeys(found) if parameter.requires_grad]


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose weights of linear maps are bfloat16, rounded from float32 copies ("masters") that it updates.

    Under autocast the forward pass computes what it computes of float32 weights, which it would round in every step.
    Moments, masters and updates are float32, so that small updates are not lost (Micikevicius et al., 2018, Sec. 3.1;
    bfloat16 needs no loss scaling). The weights become bfloat16 in place, until `give_back`.

    Parameters that are not in ``rounded``, see `rounded_weights`, are trained as they are.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = MasterAdamW([{"params": list(layer.parameters())}], rounded_weights(layer), lr=1e-3)
        >>> layer.weight.dtype, optimizer.masters[0].dtype
        (torch.bfloat16, torch.float32)
        >>> optimizer.give_back()
        >>> layer.weight.dtype
        torch.float32
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rounded: Collection[nn.Parameter], **settings: Any) -> None:
        self.weights = list(rounded)
        self.masters = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
        master_of = {id(weight): master for weight, master in zip(self.weights, self.masters, strict=True)}
        for weight in self.weights:
            weight.grad = None
            weight.data = weight.data.bfloat16()
        super().__init__(
            [{**group, "params": [master_of.get(id(p), p) for p in group["params"]]} for group in groups], **settings
        )

    def take_gradients(self) -> None:
        """Move the weights' gradients to the masters, in float32: call it after ``backward``."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the masters by their gradients, and round the weights from them."""
        loss = super().step(closure)
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.weights), list[Tensor](self.masters))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        super().zero_grad(set_to_none)
        for weight in self.weights:
            weight.grad = None

    def whole(self, names: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of tensors by name, such as a state dict's, those of the weights replaced by their masters."""
        masters = {
            weight.data_ptr(): master.detach() for weight, master in zip(self.weights, self.masters, strict=True)
        }
        return {name: masters.get(value.data_ptr(), value) for name, value in names.items()}

    def give_back(self) -> None:
        """Make the weights float32 again, with the masters' values: training is over."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            weight.data = master.data.to(weight.device)
