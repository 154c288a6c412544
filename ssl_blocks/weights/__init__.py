"""Weights of other projects: read safely, and put into objectives without anything left at its start."""

from ssl_blocks.positions import resample_positions
from ssl_blocks.weights.mae import load_mae
from ssl_blocks.weights.reading import read_state
from ssl_blocks.weights.saim import load_saim
from ssl_blocks.weights.tracing import trace_features

__all__ = ["load_mae", "load_saim", "read_state", "resample_positions", "trace_features"]
