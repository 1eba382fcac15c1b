"""Accuracy: confusion matrices, IoU, boundaries, tables."""

from dilax.evaluation.boundary import BoundaryScores
from dilax.evaluation.confusion import (
    Scores,
    add_to_confusion,
    empty_confusion,
    image_scores,
)
from dilax.evaluation.evaluate import boundary_table, evaluate, stage_table

__all__ = [
    "BoundaryScores",
    "Scores",
    "add_to_confusion",
    "boundary_table",
    "empty_confusion",
    "evaluate",
    "image_scores",
    "stage_table",
]
