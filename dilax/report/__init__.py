"""What a person looks at after a run."""

from dilax.report.collected import Collected, collect
from dilax.report.figures import field_figure, picture_figure, save_figure
from dilax.report.layer_table import layer_figures, layer_json, layer_table
from dilax.report.layer_times import time_layers
from dilax.report.paper import PAPER
from dilax.report.paper_table import paper_figures, paper_table
from dilax.report.profile import profile
from dilax.report.roofline import device_peak
from dilax.report.seeds import seed_table
from dilax.report.sheet import contact_sheet, prediction_sheet
from dilax.report.table3 import table3, table3_figures

__all__ = [
    "PAPER",
    "Collected",
    "collect",
    "contact_sheet",
    "device_peak",
    "field_figure",
    "layer_figures",
    "layer_json",
    "layer_table",
    "paper_figures",
    "paper_table",
    "picture_figure",
    "prediction_sheet",
    "profile",
    "save_figure",
    "seed_table",
    "table3",
    "table3_figures",
    "time_layers",
]
