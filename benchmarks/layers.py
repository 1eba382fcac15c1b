"""Every layer of a network by itself: time, rate, share of the roofline.

    python -m benchmarks.layers --network=dilation8_camvid --size=900
        [--width=0.25] [--dtype=bfloat16] [--batch=8] [--nogradients] [--output=FILE]

Times the forward pass and both gradients, each compiled separately, and alternates
dilated layers with undilated ones that have the same output size. --nomeasure times
nothing and only counts the operations.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from tabulate import tabulate

from benchmarks.undilated import over_undilated
from dilax.profiling import (
    device_peak,
    layer_figures,
    layer_json,
    layer_table,
    network_cost,
    time_layers,
)
from dilax.weights import RELEASED

_NETWORK = flags.DEFINE_enum(
    "network", "dilation8_camvid", [*RELEASED], "Of which the layers are."
)
_SIZE = flags.DEFINE_integer("size", 900, "Side of the images, margins included.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images per batch.", lower_bound=1)
_WIDTH = flags.DEFINE_float(
    "width", 1.0, "Number of channels, as a multiple of VGG-16's."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type to compute in."
)
_GRADIENTS = flags.DEFINE_bool("gradients", True, "Time the gradients, too.")
_TWINS = flags.DEFINE_bool("twins", True, "Compare with undilated layers.")
_MEASURE = flags.DEFINE_bool(
    "measure", True, "Time the layers; --nomeasure only counts operations."
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timings of each pass.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the figures as JSON.")


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    model = RELEASED[_NETWORK.value].build(
        width_multiplier=_WIDTH.value, dtype=jnp.dtype(_DTYPE.value)
    )
    shape = (_BATCH.value, _SIZE.value, _SIZE.value, 3)
    trained = ("front_end", "context") if _GRADIENTS.value else ()
    cost = network_cost(model, shape, trained)
    peak = device_peak(_DTYPE.value)
    print(
        f"{_NETWORK.value}, width {_WIDTH.value:g}, {_BATCH.value} × {_SIZE.value}², "
        f"{_DTYPE.value}; jax {jax.__version__}, {os.cpu_count()} cores\n"
        f"{peak}\n"
    )
    times, ratios = None, {}
    if _MEASURE.value:
        times = time_layers(cost.layers, peak, _REPEATS.value)
    figures = layer_figures(cost, peak, times)
    print(layer_table(figures))
    if _MEASURE.value and _TWINS.value:
        ratios = over_undilated(cost.layers, peak, _REPEATS.value)
        rows = [
            [name, " / ".join(f"{ratio:.2f}" for ratio in passes.values())]
            for name, passes in ratios.items()
        ]
        heads = ["layer", "× undilated"]
        print(f"\n{tabulate(rows, heads, 'github', disable_numparse=True)}")
    if _OUTPUT.value:
        layers = layer_json(figures)
        record = {"peak": peak._asdict(), "layers": layers, "over_undilated": ratios}
        Path(_OUTPUT.value).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    app.run(main)
