"""Readers get predictions out of an encoder: by a decoder behind it, or by queries beside its content."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_blocks.bounds import Width
from ssl_blocks.doors import checked
from ssl_blocks.parts.decode import Asked, Decoder, Places
from ssl_blocks.parts.route import SkipMemoryRouter
from ssl_blocks.values import AttentionMasks, Encoded

Content = Float[Tensor, "b e d"]


@runtime_checkable
class ReadableEncoder(Protocol):
    """What a reader asks of an encoder; every ``TokenEncoder`` has it."""

    @property
    def norm(self) -> nn.Module:
        """The final norm."""
        ...

    def encode(
        self, tokens: Float[Tensor, "b n d"], index: Int[Tensor, "b n"], mask: Bool[Tensor, "_ 1 s s"] | None, /
    ) -> Encoded:
        """Run the blocks over tokens at positions ``index``."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Encodes content, and reads one vector for each position that is asked for."""

    dim: int

    def __call__(
        self, encoder: ReadableEncoder, content: Content, index: Places, query_index: Asked, masks: AttentionMasks, /
    ) -> Float[Tensor, "b t r"]:
        """Return ``[B, t, dim]``.

        Args:
            encoder: any token encoder.
            content: embedded tokens that may be seen, ``[B, e, D]``.
            index: their raster positions, ``[B, e]``.
            query_index: raster positions to predict, ``[B, t]``.
            masks: who may attend to whom.
        """
        ...


@checked
class DecoderReader(nn.Module):
    """Encode content, then ask it by a decoder: RandSAC, MAE, SAIM, CrossMAE.

    Args:
        router: what each decoder layer gets of the encoder's states.
        decoder: predicts at the positions asked for.

    Raises:
        ValueError: when called, if the masks let content see queries, which a decoder keeps apart.

    Examples:
        >>> from ssl_blocks import Grid, LastLayerRouter, SegmentDecoder
        >>> decoder = SegmentDecoder(grid=Grid(8, 8), dim=64, depth=2, num_heads=4)
        >>> DecoderReader(LastLayerRouter(decoder_depth=2), decoder).dim
        64
    """

    def __init__(self, router: SkipMemoryRouter, decoder: Decoder) -> None:
        super().__init__()
        self.router, self.decoder, self.dim = router, decoder, decoder.dim

    def forward(
        self, encoder: ReadableEncoder, content: Content, index: Places, query_index: Asked, masks: AttentionMasks
    ) -> Float[Tensor, "b t r"]:
        """Return the decoder's ``[B, t, dim]``."""
        if masks.feedback is not None:
            raise ValueError("masks.feedback lets content see queries, which only QueryReader puts beside it")
        states = encoder.encode(content, index, masks.source)
        hidden = (states.input, *states.hidden) if getattr(self.router, "takes_input", False) else states.hidden
        memories = self.router(hidden, encoder.norm)
        return self.decoder(memories, masks, query_index=query_index, memory_index=index)


@checked
class QueryReader(nn.Module):
    """Let queries pass through the encoder beside its content: there is no decoder.

    A query is one learned vector, the same for all, with the position of the token to predict. Under a causal mask
    this is RandSAC's two-stream variant (Table 10, after XLNet): one set of weights serves both streams, layer by
    layer. Under `FullMask` with feedback it is the mask token of SimMIM and BEiT.

    Args:
        dim: the encoder's width, ``D``.

    Examples:
        >>> QueryReader(192).query.shape
        torch.Size([1, 1, 192])
    """

    def __init__(self, dim: Width) -> None:
        super().__init__()
        self.dim = self.memory_dim = dim
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare."""
        return {"query"}

    def forward(
        self, encoder: ReadableEncoder, content: Content, index: Places, query_index: Asked, masks: AttentionMasks
    ) -> Float[Tensor, "b t r"]:
        """Return the encoder's normalised output at the queries, ``[B, t, D]``."""
        queries = self.query.to(content.dtype).expand(*query_index.shape, -1)
        states = encoder.encode(
            torch.cat([content, queries], dim=1), torch.cat([index, query_index], dim=1), joint_mask(masks)
        )
        return states.final[:, -query_index.shape[1] :]


def joint_mask(masks: AttentionMasks) -> Bool[Tensor, "_ 1 s s"]:
    """One self-attention mask for prefix and content, then queries: ``[1|B, 1, P+e+t, P+e+t]``.

    Examples:
        >>> one = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        >>> joint_mask(AttentionMasks(source=one, target=one, memory=~one))[0, 0].int()
        tensor([[1, 0],
                [0, 1]], dtype=torch.int32)
    """
    content, like = masks.memory.shape[-1], masks.memory
    source = like.new_ones(1, 1, content, content) if masks.source is None else masks.source
    feedback = torch.zeros_like(like).transpose(-1, -2) if masks.feedback is None else masks.feedback
    parts = (source, feedback, masks.memory, masks.target)
    batch = max(part.shape[0] for part in parts)
    source, feedback, memory, target = (part.expand(batch, -1, -1, -1) for part in parts)
    return torch.cat([torch.cat([source, feedback], dim=-1), torch.cat([memory, target], dim=-1)], dim=-2)
