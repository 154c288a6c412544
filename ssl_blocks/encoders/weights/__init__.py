"""Weights of other projects: read safely, and put into objectives without anything left at its start."""

from ssl_blocks.encoders.weights.state import read_state

__all__ = ["read_state"]
