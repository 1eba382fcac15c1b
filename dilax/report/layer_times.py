"""How long each layer of a network takes by itself, forward and for its gradients.

Every layer is compiled alone, on noise of the shapes that the network gives it. That
works on every backend, where traces name what the compiler fused in its own ways.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax.models import LayerCall, LayerCost, undilated_twin
from dilax.models.cost import NONE
from dilax.ops import jit
from dilax.report.roofline import Peak

# Clocks and calls have their own cost: a sample runs a layer as often as fits into so
# many seconds at the roofline, up to a limit.
_SAMPLE = 0.002
_MOST_RUNS = 200


class PassTimes(NamedTuple):
    """Seconds of a layer's passes, or ratios of them; None where one does not run."""

    forward: float | None
    input_gradient: float | None
    kernel_gradient: float | None

    @property
    def total(self) -> float:
        """Of the passes that run."""
        return sum(value for value in self if value is not None)


class LayerTime(NamedTuple):
    """Of a layer.

    Attributes:
        seconds: medians of its passes.
        over_undilated: what they are of the passes of the same convolution undilated,
            on an input that gives as large an output; None where it is not dilated, or
            this was not asked for. Medians of ratios of neighbouring samples.
    """

    seconds: PassTimes
    over_undilated: PassTimes | None = None


def time_layers(
    layers: Sequence[LayerCost], peak: Peak, repeats: int = 3, twins: bool = False
) -> list[LayerTime]:
    """Times the passes of each layer that a step of the network runs.

    Args:
        layers: of `network_cost`.
        peak: of the device, which says how often a sample runs a layer.
        repeats: samples of each pass.
        twins: time dilated layers against undilated ones too, in turn.

    Raises:
        ValueError: for less than one repeat.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, network_cost
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> layers = network_cost(net, (1, 9, 9, 3)).layers
        >>> [time, _] = time_layers(layers, Peak("a chip", 1e9, 1e9), repeats=1)
        >>> time.seconds.forward > 0, time.seconds.input_gradient
        (True, None)
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be 1 or more")
    return [_time_layer(layer, peak, repeats, twins) for layer in layers]


def _time_layer(layer: LayerCost, peak: Peak, repeats: int, twins: bool) -> LayerTime:
    calls = [layer.call]
    if twins and layer.call.dilation > 1:
        calls.append(undilated_twin(layer.call))
    medians: list[float | None] = []
    ratios: list[float | None] = []
    for function, work in zip(_PASSES, layer.passes, strict=True):
        if work == NONE:
            medians.append(None)
            ratios.append(None)
            continue
        count = min(_MOST_RUNS, math.ceil(_SAMPLE / peak.seconds(work)))
        columns = _samples([_sample(c, function, count) for c in calls], repeats)
        medians.append(statistics.median(columns[0]))
        pairs = zip(columns[0], columns[-1], strict=True)
        ratios.append(statistics.median(a / b for a, b in pairs))
    over = PassTimes(*ratios) if len(calls) > 1 else None
    return LayerTime(PassTimes(*medians), over)


def _samples(
    samplers: Sequence[Callable[[], float]], repeats: int
) -> list[list[float]]:
    """Seconds by each sampler in turn, A B A B …: one list each."""
    for sample in samplers:
        sample()  # compiles
    rounds = [[sample() for sample in samplers] for _ in range(repeats)]
    return [list(column) for column in zip(*rounds, strict=True)]


def _sample(call: LayerCall, function: Callable, count: int) -> Callable[[], float]:
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(
        lambda s: jnp.asarray(rng.random(s.shape, np.float32) - 0.5, s.dtype),
        (call.params, call.input, call.output),
    )
    return sampler(lambda *a: function(call, *a), arrays, count)


def sampler(function: Callable, arrays: Any, count: int) -> Callable[[], float]:
    """What runs function(*arrays) `count` times, and gives the seconds of one.

    On a CPU the runs queue one behind the other, as convolutions in the body of a loop
    are many times slower there. Elsewhere they run in a loop on the device, since
    starting one takes longer than many a layer.

    Args:
        function: of JAX arrays.
        arrays: its arguments.
        count: runs of a sample. The first sample compiles.
    """
    inside = 1 if jax.default_backend() == "cpu" else count
    run = jit(lambda *arrays: _repeated(function, arrays, inside))

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(count // inside):
            out = run(*arrays)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / count

    return sample


def _repeated(function: Callable, arrays: Any, count: int) -> Any:
    """function(*arrays), computed `count` times, each after the other."""

    def again(_, last):
        # As far as the compiler may know, the arrays are others every time.
        same, _ = lax.optimization_barrier((arrays, last))
        return function(*same)

    return lax.fori_loop(1, count, again, function(*arrays))


def _forward(call: LayerCall, params, x, cotangent):
    return call(params, x)


def _input_gradient(call: LayerCall, params, x, cotangent):
    return jax.vjp(lambda x: call(params, x), x)[1](cotangent)


def _kernel_gradient(call: LayerCall, params, x, cotangent):
    return jax.vjp(lambda params: call(params, x), params)[1](cotangent)


_PASSES = (_forward, _input_gradient, _kernel_gradient)
