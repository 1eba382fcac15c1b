"""Every layer of a network by itself: time, rate, share of the roofline.

    python -m benchmarks.layers --network=dilation8_camvid --size=900
        [--width=0.25] [--dtype=bfloat16] [--batch=8] [--nogradients] [--output=FILE]

Times the forward pass and both gradients, each compiled alone, and dilated layers in
turn with undilated ones that give as large an output. --nomeasure only tells the work.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from tabulate import tabulate

from dilax.profiling import (
    LayerCall,
    LayerCost,
    device_peak,
    layer_figures,
    layer_json,
    layer_table,
    network_cost,
    time_layers,
)
from dilax.profiling.layer_costs import pass_sampler
from dilax.profiling.roofline import Peak
from dilax.weights import RELEASED

_NETWORK = flags.DEFINE_enum(
    "network", "dilation8_camvid", [*RELEASED], "Of which the layers are."
)
_SIZE = flags.DEFINE_integer("size", 900, "Side of the images, margins included.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images at a time.", lower_bound=1)
_WIDTH = flags.DEFINE_float("width", 1.0, "Of the layers: a multiple of VGG-16's.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computed in.")
_GRADIENTS = flags.DEFINE_bool("gradients", True, "Time the gradients, too.")
_TWINS = flags.DEFINE_bool("twins", True, "Compare with undilated layers.")
_MEASURE = flags.DEFINE_bool("measure", True, "Time layers; else only tell the work.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Samples of a pass.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the figures as JSON.")


def over_undilated(
    layers: Sequence[LayerCost], peak: Peak, repeats: int
) -> dict[str, dict[str, float]]:
    """Return the price of dilation: layer → pass → time over that without dilation.

    Both are timed in turn, A B A B …; it is the median of the ratios of neighbours.
    """
    found = {}
    for layer in layers:
        call, ratios = layer.call, {}
        if call.dilation == 1:
            continue
        for name, work in layer.passes.items():
            pair = [
                pass_sampler(either, name, peak.seconds(work))
                for either in (call, undilated_twin(call))
            ]
            first, *rounds = [[sample() for sample in pair] for _ in range(repeats + 1)]
            del first  # it compiles
            ratios[name] = statistics.median(a / b for a, b in rounds)
        found[f"{call.module}/{call.name}"] = ratios
    return found


def undilated_twin(call: LayerCall) -> LayerCall:
    """Return the convolution without dilation, for an output of the same size."""
    layer = call.layer.clone(dilation=1)
    fewer = (call.dilation - 1) * (layer.kernel_size - 1)
    if layer.padding != "valid" or call.pad >= fewer // 2:
        pad = call.pad - (fewer // 2 if layer.padding == "valid" else 0)
        return dataclasses.replace(call, layer=layer, pad=pad)
    b, h, w, c = call.input.shape
    x = jax.ShapeDtypeStruct((b, h - fewer, w - fewer, c), call.input.dtype)
    return dataclasses.replace(call, layer=layer, input=x)


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
        print(f"\n{tabulate(rows, ['layer', '× undilated'], 'github')}")
    if _OUTPUT.value:
        layers = layer_json(figures)
        record = {"peak": peak._asdict(), "layers": layers, "over_undilated": ratios}
        Path(_OUTPUT.value).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    app.run(main)
