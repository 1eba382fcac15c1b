"""Where time and memory go: the cost of layers, their times, the roofline."""

from dilax.profiling.cost import (
    LayerCall,
    LayerCost,
    NetworkCost,
    Work,
    layer_calls,
    network_cost,
)
from dilax.profiling.layer_costs import (
    layer_figures,
    layer_json,
    layer_table,
    time_layers,
)
from dilax.profiling.roofline import device_peak

__all__ = [
    "LayerCall",
    "LayerCost",
    "NetworkCost",
    "Work",
    "device_peak",
    "layer_calls",
    "layer_figures",
    "layer_json",
    "layer_table",
    "network_cost",
    "time_layers",
]
