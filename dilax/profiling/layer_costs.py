"""The layers of a network one by one: their measured times, as a table and as JSON.

Each layer is compiled alone, on noise of the shapes that it has in the network. That
works on every backend, whereas traces name what the compiler fused in its own way.
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
from tabulate import tabulate

from dilax.profiling.cost import LayerCall, LayerCost, NetworkCost
from dilax.profiling.roofline import Peak
from dilax.runtime import jit

# A sample runs a layer as often as the roofline allows in so many seconds, up to a
# limit: reading clocks and starting programs take time themselves.
_SAMPLE = 0.002
_MAX_RUNS = 200


PASSES: dict[str, Callable] = {
    "forward": lambda call, params, x, g: call(params, x),
    # The compiler drops the gradient that is not asked for.
    "input_gradient": lambda call, params, x, g: jax.vjp(call, params, x)[1](g)[1],
    "kernel_gradient": lambda call, params, x, g: jax.vjp(call, params, x)[1](g)[0],
}
"""What each pass computes, from (call, params, input, gradient of the output)."""


def time_layers(
    layers: Sequence[LayerCost], peak: Peak, repeats: int = 3
) -> list[dict[str, float]]:
    """Time the passes of each layer that a step of the network runs.

    Args:
        layers: the layers of a `network_cost`.
        peak: of the device; determines how often a sample runs a layer.
        repeats: samples of each pass.

    Returns:
        For each layer, pass (of `PASSES`) → median of its samples, in seconds.

    Raises:
        ValueError: if `repeats` is less than 1.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer
        >>> from dilax.profiling import network_cost
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> layers = network_cost(net, (1, 9, 9, 3)).layers
        >>> [time, _] = time_layers(layers, Peak("a chip", 1e9, 1e9), repeats=1)
        >>> list(time), time["forward"] > 0
        (['forward', 'kernel_gradient'], True)
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be 1 or more")
    times = []
    for layer in layers:
        seconds = {}
        for name, work in layer.passes.items():
            sample = pass_sampler(layer.call, name, peak.seconds(work))
            sample()  # compiles
            seconds[name] = statistics.median(sample() for _ in range(repeats))
        times.append(seconds)
    return times


def pass_sampler(call: LayerCall, name: str, least: float) -> Callable[[], float]:
    """Return a function that times one pass of a layer, on noise.

    Args:
        call: the layer.
        name: of the pass, in `PASSES`.
        least: minimum time of the pass, in seconds.
    """
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(
        lambda x: jnp.asarray(rng.random(x.shape, np.float32) - 0.5, x.dtype),
        (call.params, call.input, call.output),
    )
    count = min(_MAX_RUNS, math.ceil(_SAMPLE / least))
    return sampler(lambda *given: PASSES[name](call, *given), arrays, count)


def sampler(function: Callable, arrays: Any, count: int) -> Callable[[], float]:
    """Return a function that runs function(*arrays) `count` times and times one run.

    On a CPU the runs are queued one after the other: convolutions in the body of a loop
    are many times slower there. Elsewhere they run in a loop on the device, because
    starting a program takes longer than many layers.

    Args:
        function: of JAX arrays.
        arrays: its arguments.
        count: runs per sample. The first sample compiles.
    """
    inside = 1 if jax.default_backend() == "cpu" else count
    run = jit(lambda *arrays: repeated(function, arrays, inside))

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(count // inside):
            out = run(*arrays)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / count

    return sample


def repeated(function: Callable, arrays: Any, count: int) -> Any:
    """Compute function(*arrays) `count` times in a loop on the device."""

    def again(_, last):
        # The barrier makes the arrays depend on the last output, so that the compiler
        # cannot compute the function once and reuse the result.
        same, _ = lax.optimization_barrier((arrays, last))
        return function(*same)

    return lax.fori_loop(1, count, again, function(*arrays))


class PassFigures(NamedTuple):
    """The figures of one pass of a layer, or of several layers together.

    Attributes:
        flops: operations.
        bytes: minimum number of bytes read and written.
        least_seconds: minimum time, by the roofline.
        seconds: measured time, if any.
    """

    flops: int
    bytes: int
    least_seconds: float
    seconds: float | None = None

    @property
    def rate(self) -> float | None:
        """Operations per second."""
        return self.flops / self.seconds if self.seconds else None

    @property
    def roofline(self) -> float | None:
        """The fraction of the roofline that was reached."""
        return self.least_seconds / self.seconds if self.seconds else None


class LayerFigures(NamedTuple):
    """The figures of a layer, or of several layers together.

    Attributes:
        layer: module and name.
        output: shape of the output.
        dilation: distance between taps.
        parameters: number of parameters.
        kept: bytes of the input that the gradients need.
        passes: the passes that run, by their names in `PASSES`.
    """

    layer: str
    output: tuple[int, ...]
    dilation: int
    parameters: int
    kept: int
    passes: dict[str, PassFigures]

    @property
    def module(self) -> str:
        """The module that holds the layer; empty for the network itself."""
        return self.layer.rpartition("/")[0]

    @property
    def seconds(self) -> float:
        """The measured time of all passes."""
        return sum(figures.seconds or 0.0 for figures in self.passes.values())


def layer_figures(
    cost: NetworkCost, peak: Peak, times: Sequence[dict[str, float]] | None = None
) -> list[LayerFigures]:
    """Combine the cost of each layer, the roofline, and measured times.

    Args:
        cost: of the network.
        peak: of the device.
        times: from `time_layers`, if the layers were timed.

    Raises:
        ValueError: if the number of times is not that of the layers.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer
        >>> from dilax.profiling import network_cost
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> cost = network_cost(net, (1, 9, 9, 3))
        >>> figures = layer_figures(cost, Peak("a chip", 1e9, 1e9))
        >>> [(row.layer, row.output) for row in figures]
        [('front_end/conv1', (1, 7, 7, 4)), ('front_end/final', (1, 7, 7, 2))]
    """
    if times is None:
        times = [{}] * len(cost.layers)
    if len(times) != len(cost.layers):
        raise ValueError(f"times: {len(times)} for {len(cost.layers)} layers")
    figures: list[LayerFigures] = []
    for layer, measured in zip(cost.layers, times, strict=True):
        passes = {
            name: PassFigures(*work, peak.seconds(work), measured.get(name))
            for name, work in layer.passes.items()
        }
        call = layer.call
        name = f"{call.module}/{call.name}".lstrip("/")
        size = call.output.shape, call.dilation, layer.parameters, layer.kept
        figures.append(LayerFigures(name, *size, passes))
    return figures


def layer_json(figures: Sequence[LayerFigures]) -> list[dict[str, Any]]:
    """Convert figures to plain data, with rates and fractions of the roofline.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer
        >>> from dilax.profiling import network_cost
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> cost = network_cost(net, (1, 9, 9, 3))
        >>> figures = layer_figures(cost, Peak("a chip", 1e9, 1e9))
        >>> layer_json(figures)[0]["passes"]["forward"]["flops"]  # 49 cells of 4 × 27
        10584
    """
    return [
        row._asdict()
        | {
            "output": list(row.output),
            "passes": {
                name: f._asdict() | {"rate": f.rate, "roofline": f.roofline}
                for name, f in row.passes.items()
            },
        }
        for row in figures
    ]


def layer_table(figures: Sequence[LayerFigures]) -> str:
    """Format one row per layer, then the sums of each module and of the network.

    Three figures separated by slashes belong to the forward pass, the input's gradient
    and the kernel's gradient. If times were measured, the table shows them with the
    rates and the fractions of the roofline, otherwise the work and the minimum time.

    Args:
        figures: from `layer_figures`.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer
        >>> from dilax.profiling import network_cost
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> cost = network_cost(net, (1, 9, 9, 3))
        >>> figures = layer_figures(cost, Peak("a chip", 1e9, 1e9))
        >>> layer_table(figures).splitlines()[2].split()[1:4]
        ['front_end/conv1', '|', '1×7×7×4']
    """
    modules = dict.fromkeys(row.module for row in figures if row.module)
    sums = [_sum(m, [r for r in figures if r.module == m]) for m in modules]
    whole = _sum("all", figures)
    rows = [*figures, *(sums if len(sums) > 1 else []), whole]

    def each(text: Callable[[PassFigures], str]) -> list[str]:
        """A cell per row: a dash where a pass does not run, "" without any figure."""
        cells = [
            [text(row.passes[name]) if name in row.passes else "–" for name in PASSES]
            for row in rows
        ]
        return [" / ".join(c) if {*c} - {"", "–"} else "" for c in cells]

    columns = {
        "layer": [row.layer for row in rows],
        "output": ["×".join(map(str, row.output)) for row in rows],
        "dilation": [str(row.dilation or "") for row in rows],
    }
    work = each(lambda f: f"{f.flops / 1e9:.3g}")
    if whole.seconds:
        columns |= {
            "GFLOP": work,
            "ms": each(
                lambda f: "" if f.seconds is None else f"{1000 * f.seconds:.3g}"
            ),
            "GFLOP/s": each(lambda f: f"{(f.rate or 0) / 1e9:.0f}"),
            "roofline, %": each(lambda f: f"{100 * (f.roofline or 0):.0f}"),
            "time, %": [f"{100 * row.seconds / whole.seconds:.1f}" for row in rows],
        }
    else:
        columns |= {
            "parameters": [f"{row.parameters:,}" for row in rows],
            "GFLOP": work,
            "MB": each(lambda f: f"{f.bytes / 1e6:.3g}"),
            "kept, MB": [f"{row.kept / 1e6:.3g}" for row in rows],
            "least ms": each(lambda f: f"{1000 * f.least_seconds:.3g}"),
        }
    align = ["left", "left", *["right"] * (len(columns) - 2)]
    return tabulate(columns, "keys", "github", disable_numparse=True, colalign=align)


def _sum(name: str, rows: Sequence[LayerFigures]) -> LayerFigures:
    passes = {}
    for key in PASSES:
        if found := [row.passes[key] for row in rows if key in row.passes]:
            flops, moved, least, seconds = zip(*found, strict=True)
            whole = None if None in seconds else sum(seconds)
            passes[key] = PassFigures(sum(flops), sum(moved), sum(least), whole)
    parameters, kept = sum(r.parameters for r in rows), sum(r.kept for r in rows)
    return LayerFigures(name, (), 0, parameters, kept, passes)
