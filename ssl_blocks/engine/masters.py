"""Weights in bfloat16 that are trained in single precision."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of the weights ("masters"), whose bfloat16 roundings the model computes with.

    Gradients are rounded to bfloat16 as the model leaves them; moments, masters and updates are float32, so that small
    updates are not lost. The given parameters become bfloat16 in place, until `give_back`. Mixed precision training
    with a master copy (Micikevicius et al., 2018, Sec. 3.1), without loss scaling, which bfloat16 does not need.

    Args:
        groups: as for AdamW, of float32 parameters.
        **settings: AdamW's.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = MasterAdamW([{"params": list(layer.parameters())}], lr=1e-3)
        >>> layer.weight.dtype, optimizer.masters[0].dtype
        (torch.bfloat16, torch.float32)
        >>> optimizer.give_back()
        >>> layer.weight.dtype
        torch.float32
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **settings: Any) -> None:
        groups = [dict(group) for group in groups]
        self.weights: list[nn.Parameter] = [weight for group in groups for weight in group["params"]]
        for group in groups:
            group["params"] = [nn.Parameter(weight.detach().clone()) for weight in group["params"]]
        self.masters: list[nn.Parameter] = [master for group in groups for master in group["params"]]
        for weight in self.weights:
            weight.grad = None
            weight.data = weight.data.bfloat16()
        super().__init__(groups, **settings)

    def take_gradients(self) -> None:
        """Move the weights' gradients to the masters, in float32: call it after ``backward``."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the masters by their gradients, and round the weights from them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        super().step()
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
