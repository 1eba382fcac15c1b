"""What a person looks at after a run."""

from dilax.report.fields import (
    effective_told,
    heat_picture,
    in_letters,
    measured_field,
    network_told,
    save_picture,
    stack_picture,
)
from dilax.report.figures import (
    contact_sheet,
    field_figure,
    picture_figure,
    prediction_sheet,
    save_figure,
)
from dilax.report.page import watcher, write_comparison, write_page
from dilax.report.paper import PAPER
from dilax.report.paper_tables import paper_figures, paper_table, table3, table3_figures
from dilax.report.runs import Collected, collect, seed_table

__all__ = [
    "PAPER",
    "Collected",
    "collect",
    "contact_sheet",
    "effective_told",
    "field_figure",
    "heat_picture",
    "in_letters",
    "measured_field",
    "network_told",
    "paper_figures",
    "paper_table",
    "picture_figure",
    "prediction_sheet",
    "save_figure",
    "save_picture",
    "seed_table",
    "stack_picture",
    "table3",
    "table3_figures",
    "watcher",
    "write_comparison",
    "write_page",
]
