"""What all stacks of layers share: which sizes they can have, and how they are drawn."""

from torch import nn


def check_sizes(dim: int, num_heads: int) -> None:
    """Refuse sizes that no layers can have."""
    if dim % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide dim={dim}")


def init_linear(module: nn.Module) -> None:
    """Draw a Linear's weight from Xavier's uniform distribution, and set its bias to 0; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
