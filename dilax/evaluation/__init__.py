"""Accuracy: confusion matrices, IoU, boundaries, tables."""

from dilax.evaluation.boundary import BoundaryScores
from dilax.evaluation.confusion import Scores, image_scores
from dilax.evaluation.evaluate import boundary_table, evaluate, stage_table

__all__ = [
    "BoundaryScores",
    "Scores",
    "boundary_table",
    "evaluate",
    "image_scores",
    "stage_table",
]
