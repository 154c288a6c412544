"""Objectives assemble parts into something with a loss."""

from ssl_blocks.objectives.autoregression import SegmentAutoregression
from ssl_blocks.objectives.protocol import Objective, ObjectiveModule

__all__ = ["Objective", "ObjectiveModule", "SegmentAutoregression"]
