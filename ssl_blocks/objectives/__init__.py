"""Objectives assemble parts into something with a loss."""

from ssl_blocks.objectives.blocks import BlockPrediction as BlockPrediction
from ssl_blocks.objectives.builders import mae as mae, randsac as randsac, saim as saim, simmim as simmim
from ssl_blocks.objectives.combine import WeightedSum as WeightedSum
from ssl_blocks.objectives.distillation import ViewRegionDistillation as ViewRegionDistillation
from ssl_blocks.objectives.embedding import JointEmbedding as JointEmbedding
from ssl_blocks.objectives.heads import dino_head as dino_head
from ssl_blocks.objectives.masked_views import (
    DistilledTokens as DistilledTokens,
    DistilledViews as DistilledViews,
    MaskedViews as MaskedViews,
    SpreadViews as SpreadViews,
    ViewPass as ViewPass,
)
from ssl_blocks.objectives.objective import Objective as Objective
from ssl_blocks.objectives.prediction import SegmentPrediction as SegmentPrediction
from ssl_blocks.objectives.puzzle import PatchPuzzle as PatchPuzzle, PuzzleDraw as PuzzleDraw
from ssl_blocks.objectives.teacher import Center as Center, TeacherSchedule as TeacherSchedule
