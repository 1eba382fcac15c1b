"""Accuracy: confusion matrices, IoU, boundaries, tables."""

from dilax.evaluation.boundary import BoundaryScores
from dilax.evaluation.confusion import (
    Scores,
    add_to_confusion,
    empty_confusion,
    image_scores,
)
from dilax.evaluation.crf_grid import CRFGrid
from dilax.evaluation.crf_search import CRFSearch, search_crf
from dilax.evaluation.evaluate import evaluate
from dilax.evaluation.table import boundary_table, stage_table

__all__ = [
    "BoundaryScores",
    "CRFGrid",
    "CRFSearch",
    "Scores",
    "add_to_confusion",
    "boundary_table",
    "empty_confusion",
    "evaluate",
    "image_scores",
    "search_crf",
    "stage_table",
]
