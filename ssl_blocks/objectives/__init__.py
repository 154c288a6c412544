"""Objectives assemble parts into something with a loss."""

from ssl_blocks.objectives.autoregression import SegmentAutoregression
from ssl_blocks.objectives.distillation import ViewRegionDistillation
from ssl_blocks.objectives.heads import dino_head
from ssl_blocks.objectives.masked import MaskedAutoencoding
from ssl_blocks.objectives.protocol import Objective, ObjectiveModule
from ssl_blocks.objectives.teacher import TeacherSchedule

__all__ = [
    "MaskedAutoencoding",
    "Objective",
    "ObjectiveModule",
    "SegmentAutoregression",
    "TeacherSchedule",
    "ViewRegionDistillation",
    "dino_head",
]
