"""Objectives assemble parts into something with a loss."""

from ssl_blocks.objectives.blocks import BlockPrediction
from ssl_blocks.objectives.builders import mae, randsac, saim, simmim
from ssl_blocks.objectives.combine import WeightedSum
from ssl_blocks.objectives.distillation import ViewRegionDistillation
from ssl_blocks.objectives.embedding import JointEmbedding
from ssl_blocks.objectives.heads import dino_head
from ssl_blocks.objectives.masked_views import DistilledTokens, DistilledViews, MaskedViews, SpreadViews, ViewPass
from ssl_blocks.objectives.objective import Objective
from ssl_blocks.objectives.prediction import SegmentPrediction
from ssl_blocks.objectives.puzzle import PatchPuzzle, PuzzleDraw
from ssl_blocks.objectives.teacher import Center, TeacherSchedule

__all__ = [
    "BlockPrediction",
    "Center",
    "DistilledTokens",
    "DistilledViews",
    "JointEmbedding",
    "MaskedViews",
    "Objective",
    "PatchPuzzle",
    "PuzzleDraw",
    "SegmentPrediction",
    "SpreadViews",
    "TeacherSchedule",
    "ViewPass",
    "ViewRegionDistillation",
    "WeightedSum",
    "dino_head",
    "mae",
    "randsac",
    "saim",
    "simmim",
]
