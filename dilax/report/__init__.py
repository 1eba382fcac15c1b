"""Reports on trained runs: the HTML page, figures, and the paper's tables."""

from dilax.report.fields import (
    describe_effective_field,
    describe_network,
    field_as_text,
    heat_picture,
    measure_effective_field,
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
from dilax.report.paper import PAPER, Collected, collect
from dilax.report.tables import paper_figures, paper_table, seed_table

__all__ = [
    "PAPER",
    "Collected",
    "collect",
    "contact_sheet",
    "describe_effective_field",
    "describe_network",
    "field_as_text",
    "field_figure",
    "heat_picture",
    "measure_effective_field",
    "paper_figures",
    "paper_table",
    "picture_figure",
    "prediction_sheet",
    "save_figure",
    "save_picture",
    "seed_table",
    "stack_picture",
    "watcher",
    "write_comparison",
    "write_page",
]
