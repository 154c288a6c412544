"""Weights of other projects: read safely, and put into objectives without anything left at its start."""

from ssl_blocks.encoders.weights.reading import read_state
from ssl_blocks.encoders.weights.tracing import trace_features
from ssl_blocks.parts.position import resample_positions

__all__ = ["read_state", "resample_positions", "trace_features"]
