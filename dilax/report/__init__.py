"""What a person looks at after a run."""

from dilax.report.sheet import contact_sheet, prediction_sheet

__all__ = ["contact_sheet", "prediction_sheet"]
