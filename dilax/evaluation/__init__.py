"""Accuracy: confusion matrices, IoU, tables."""

from dilax.evaluation.confusion import Scores, add_to_confusion, empty_confusion
from dilax.evaluation.evaluate import evaluate
from dilax.evaluation.table import stage_table

__all__ = ["Scores", "add_to_confusion", "empty_confusion", "evaluate", "stage_table"]
