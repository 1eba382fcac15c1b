"""What a person looks at after a run."""

from dilax.report.seeds import seed_table
from dilax.report.sheet import contact_sheet, prediction_sheet
from dilax.report.table3 import table3, table3_figures

__all__ = [
    "contact_sheet",
    "prediction_sheet",
    "seed_table",
    "table3",
    "table3_figures",
]
