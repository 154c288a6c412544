"""Checkpoints of other projects, put into objectives without anything left at its start."""

from ssl_blocks.objectives.weights.apl import load_apl
from ssl_blocks.objectives.weights.esvit import load_esvit
from ssl_blocks.objectives.weights.mae import load_mae
from ssl_blocks.objectives.weights.randsac import load_randsac
from ssl_blocks.objectives.weights.saim import load_saim

__all__ = ["load_apl", "load_esvit", "load_mae", "load_randsac", "load_saim"]
