"""Checkpoints of other projects, put into objectives without anything left at its start."""

from ssl_blocks.objectives.weights.mae import load_mae
from ssl_blocks.objectives.weights.saim import load_saim

__all__ = ["load_mae", "load_saim"]
