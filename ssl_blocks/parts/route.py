"""Skip-memory routers decide what each decoder layer attends to."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Depth, NotNegative, Width
from ssl_blocks.doors import checked

Hidden = tuple[Float[Tensor, "b n d"], ...]


@runtime_checkable
class SkipMemoryRouter(Protocol):
    """Turns the encoder's hidden states into one memory per decoder layer.

    One with an attribute ``takes_input`` that is true gets, before these, what enters the first block.
    """

    def __call__(self, hidden: Hidden, norm: nn.Module, /) -> Hidden:
        """Return one ``[B, n, D]`` memory per decoder layer.

        Args:
            hidden: residual stream after every encoder block, not normalised.
            norm: the encoder's final norm.
        """
        ...


@checked
class LearnedSkipRouter(nn.Module):
    """Give every decoder layer its own learned mixture of all encoder layers (RandSAC, Sec. 3.5).

    The encoder's final norm is applied to every layer's states, then one Linear over the layer axis mixes them,
    with a bias and without a softmax, as the paper's pseudocode has it (the text's formula has no bias).

    Args:
        encoder_depth: encoder layers.
        decoder_depth: decoder layers.

    Examples:
        >>> hidden = tuple(torch.randn(2, 5, 8) for _ in range(4))
        >>> [tuple(m.shape) for m in LearnedSkipRouter(encoder_depth=4, decoder_depth=2)(hidden, nn.LayerNorm(8))]
        [(2, 5, 8), (2, 5, 8)]
    """

    def __init__(self, *, encoder_depth: Depth, decoder_depth: Depth) -> None:
        super().__init__()
        self.mix = nn.Linear(encoder_depth, decoder_depth)

    def forward(self, hidden: Hidden, norm: nn.Module) -> Hidden:
        """Mix the layers.

        Raises:
            ValueError: if the number of hidden states is not ``encoder_depth``.
        """
        if len(hidden) != self.mix.in_features:
            raise ValueError(f"encoder_depth={self.mix.in_features} must be the encoder's depth, {len(hidden)}")
        states = norm(torch.stack(hidden, dim=1))  # [B, L_enc, n, D]
        mixed = _mixed(states, self.mix.weight)
        mixed = mixed + self.mix.bias[:, None].to(mixed.dtype)
        return tuple(memory.reshape(hidden[0].shape) for memory in mixed.unbind(1))


def _mixed(states: Float[Tensor, "b l n d"], weight: Float[Tensor, "k l"]) -> Float[Tensor, "b k nd"]:
    # a product per image: the weight's gradient is then reduced per sample and summed in its own precision
    # (one 16-bit product over the whole batch is inexact, and kills one-thread CPU processes)
    return torch.bmm(weight.expand(states.shape[0], -1, -1), states.flatten(2))


@checked
class WeightedSkipRouter(nn.Module):
    """Give every decoder layer its own weighted sum of all encoder layers, and a norm of its own (CrossMAE, Sec. 3.3).

    What enters the first block counts as a layer. States are summed as they are, without a bias, and normalised
    afterwards; weights start from N(0, 1 / layers). The encoder's final norm is not used: freeze it, for nothing
    trains it.

    Args:
        encoder_depth: encoder layers.
        decoder_depth: decoder layers.
        dim: the encoder's width, ``D``.
        eps: added to the variance in layer norms.

    Examples:
        >>> states = tuple(torch.randn(2, 5, 8) for _ in range(5))  # the input, and what four blocks make of it
        >>> router = WeightedSkipRouter(encoder_depth=4, decoder_depth=2, dim=8)
        >>> [tuple(memory.shape) for memory in router(states, nn.Identity())]
        [(2, 5, 8), (2, 5, 8)]
    """

    takes_input = True

    def __init__(self, *, encoder_depth: Depth, decoder_depth: Depth, dim: Width, eps: NotNegative = 1e-6) -> None:
        super().__init__()
        self.memory_dim = dim
        self.mix = nn.Linear(encoder_depth + 1, decoder_depth, bias=False)
        nn.init.normal_(self.mix.weight, std=(encoder_depth + 1) ** -0.5)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for _ in range(decoder_depth))

    def forward(self, hidden: Hidden, norm: nn.Module) -> Hidden:
        """Mix the layers, the encoder's input first.

        Raises:
            ValueError: if the number of states is not ``encoder_depth + 1``.
        """
        if len(hidden) != self.mix.in_features:
            raise ValueError(
                f"encoder_depth={self.mix.in_features - 1} must be the encoder's depth, {len(hidden) - 1}: the first "
                "state is what enters its blocks"
            )
        mixed = _mixed(torch.stack(hidden, dim=1), self.mix.weight).unbind(1)
        return tuple(own(memory.reshape(hidden[0].shape)) for own, memory in zip(self.norms, mixed, strict=True))


@checked
class LastLayerRouter:
    """Give every decoder layer the encoder's normalised output: the plain transformer (RandSAC, Table 10).

    Args:
        decoder_depth: decoder layers.
    """

    def __init__(self, *, decoder_depth: Depth) -> None:
        self.decoder_depth = decoder_depth

    def __call__(self, hidden: Hidden, norm: nn.Module) -> Hidden:
        """Return the same memory ``decoder_depth`` times."""
        return (norm(hidden[-1]),) * self.decoder_depth


@checked
class MatchedRouter:
    """Give every decoder layer the raw states of the encoder layer that it belongs to (SAIM, query stream).

    As many decoder as encoder layers are paired one to one. A decoder of fewer layers, whose number divides the
    encoder's, gets the states after every (L / Q)-th block, the last block's among them. Nothing is normalised: a
    query block has a norm of its own.

    Args:
        encoder_depth: encoder layers, L.
        decoder_depth: decoder layers, Q.

    Raises:
        ValueError: if ``decoder_depth`` does not divide ``encoder_depth``.

    Examples:
        >>> hidden = tuple(torch.full((1, 1, 1), float(layer)) for layer in range(6))
        >>> [m.item() for m in MatchedRouter(encoder_depth=6, decoder_depth=3)(hidden, nn.Identity())]
        [1.0, 3.0, 5.0]
    """

    def __init__(self, *, encoder_depth: Depth, decoder_depth: Depth) -> None:
        if decoder_depth < 1 or encoder_depth % decoder_depth:
            raise ValueError(f"decoder_depth={decoder_depth} must divide encoder_depth={encoder_depth}")
        self.encoder_depth, self.decoder_depth = encoder_depth, decoder_depth

    def __call__(self, hidden: Hidden, norm: nn.Module) -> Hidden:
        """Pick the layers.

        Raises:
            ValueError: if the number of hidden states is not ``encoder_depth``.
        """
        if len(hidden) != self.encoder_depth:
            raise ValueError(f"encoder_depth={self.encoder_depth} must be the encoder's depth, {len(hidden)}")
        every = self.encoder_depth // self.decoder_depth
        return hidden[every - 1 :: every]
