"""A reader without queries: what follows a token is read off the token itself."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.bounds import Count, Width
from ssl_blocks.doors import checked
from ssl_blocks.parts.decode import Asked, Places
from ssl_blocks.parts.read import Content, ReadableEncoder
from ssl_blocks.values import AttentionMasks


@checked
class NextReader(nn.Module):
    """Read the prediction of every token off the encoder's output at the token before it (iGPT, AIM).

    There is neither a query nor a decoder: an output says what comes next, in an order that is the same for all images.
    Where segments have ``step`` tokens each, a token is read off the one ``step`` places before it, which holds its
    place in the segment before (XTRA). What has nothing before it is read off the last prefix token.

    Args:
        dim: the encoder's width, ``D``.
        num_tokens: tokens of an image, ``N``.
        step: tokens of a segment.

    Raises:
        ValueError: if ``step`` is below 1, or (when called) content shall see queries, or segments are larger.

    Examples:
        >>> NextReader(192, num_tokens=64).dim
        192
    """

    in_order = True  # the leak test exchanges no slots, for there is no query that could follow

    def __init__(self, dim: Width, *, num_tokens: Count, step: Count = 1) -> None:
        super().__init__()
        if not 1 <= step < num_tokens:
            raise ValueError(f"step={step} must be at least 1 and below num_tokens={num_tokens}")
        self.dim, self.num_tokens, self.step = dim, num_tokens, step
        self.memory_dim = dim

    def forward(
        self, encoder: ReadableEncoder, content: Content, index: Places, query_index: Asked, masks: AttentionMasks
    ) -> Float[Tensor, "b t r"]:
        """Return the encoder's normalised output, ``[B, t, D]``; content and queries are windows of one sequence."""
        if masks.feedback is not None:
            raise ValueError("masks.feedback lets content see queries, of which NextReader has none")
        if content.shape[1] < self.num_tokens - self.step:
            raise ValueError(
                f"step={self.step} must be the number of tokens of every segment: of num_tokens={self.num_tokens} only "
                f"{content.shape[1]} are encoded"
            )
        states = encoder.encode(content, index, masks.source).final
        prefix = states.shape[1] - content.shape[1]
        first = self.num_tokens - query_index.shape[1] - self.step  # slot that the first row is read off
        rows = torch.arange(first, first + query_index.shape[1], device=states.device)
        return states[:, rows.clamp(min=-1 if prefix else 0) + prefix]
