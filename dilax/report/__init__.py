"""What a person looks at after a run."""

from dilax.report.collected import Collected, collect
from dilax.report.fields import effective_told, measured_field, network_told
from dilax.report.figures import field_figure, picture_figure, save_figure
from dilax.report.layer_table import layer_figures, layer_json, layer_table
from dilax.report.layer_times import time_layers
from dilax.report.page import watcher, write_comparison, write_page
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
    "effective_told",
    "field_figure",
    "layer_figures",
    "layer_json",
    "layer_table",
    "measured_field",
    "network_told",
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
    "watcher",
    "write_comparison",
    "write_page",
]
