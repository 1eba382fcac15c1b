"""What a person looks at after a run."""

from dilax.report.sheet import prediction_sheet

__all__ = ["prediction_sheet"]
