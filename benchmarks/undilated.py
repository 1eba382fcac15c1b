"""The cost of dilation: dilated layers against the same layers without dilation."""

import dataclasses
import statistics
from collections.abc import Sequence

import jax

from dilax.profiling import LayerCall, LayerCost
from dilax.profiling.layer_costs import pass_sampler
from dilax.profiling.roofline import Peak


def over_undilated(
    layers: Sequence[LayerCost], peak: Peak, repeats: int
) -> dict[str, dict[str, float]]:
    """Return the cost of dilation: layer → pass → time over that without dilation.

    Both are timed alternately, A B A B …; the ratio is a median over consecutive runs.
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
    """Return the same convolution without dilation, for an output of the same size."""
    layer = call.layer.clone(dilation=1)
    fewer = (call.dilation - 1) * (layer.kernel_size - 1)
    if layer.padding != "valid" or call.pad >= fewer // 2:
        pad = call.pad - (fewer // 2 if layer.padding == "valid" else 0)
        return dataclasses.replace(call, layer=layer, pad=pad)
    b, h, w, c = call.input.shape
    x = jax.ShapeDtypeStruct((b, h - fewer, w - fewer, c), call.input.dtype)
    return dataclasses.replace(call, layer=layer, input=x)
