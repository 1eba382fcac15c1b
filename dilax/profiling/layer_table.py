"""What each layer of a network costs and takes, as a table and as JSON.

How long each layer of a network takes by itself, forward and for its gradients.

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
from tabulate import tabulate

from dilax.profiling.cost import NONE, LayerCall, LayerCost, NetworkCost, undilated_twin
from dilax.profiling.roofline import Peak
from dilax.runtime import jit

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


PASSES = ("forward", "input_gradient", "kernel_gradient")


class PassFigures(NamedTuple):
    """Of a layer, or of several together, in one pass.

    Attributes:
        flops: operations.
        bytes: read and written at least.
        least_seconds: by the roofline.
        seconds: measured; None where nothing was.
        over_undilated: time over that of the undilated layer; None likewise.
    """

    flops: int
    bytes: int
    least_seconds: float
    seconds: float | None = None
    over_undilated: float | None = None

    @property
    def rate(self) -> float | None:
        """Operations a second."""
        return self.flops / self.seconds if self.seconds else None

    @property
    def roofline(self) -> float | None:
        """The share of what the roofline allows."""
        return self.least_seconds / self.seconds if self.seconds else None

    def plus(self, other: "PassFigures") -> "PassFigures":
        """Both one after the other."""
        seconds = None
        if self.seconds is not None and other.seconds is not None:
            seconds = self.seconds + other.seconds
        return PassFigures(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.least_seconds + other.least_seconds,
            seconds,
        )


class LayerFigures(NamedTuple):
    """Of a layer, or of several together.

    Attributes:
        layer: its module and name.
        output: the shape of what it gives.
        dilation: of its taps.
        parameters: how many it has.
        kept: bytes that the gradients need of what it reads.
        passes: the passes that run, of `PASSES`.
    """

    layer: str
    output: tuple[int, ...]
    dilation: int
    parameters: int
    kept: int
    passes: dict[str, PassFigures]

    @property
    def seconds(self) -> float:
        """Of all passes, as far as they were measured."""
        return sum(figures.seconds or 0.0 for figures in self.passes.values())


def layer_figures(
    cost: NetworkCost, peak: Peak, times: Sequence[LayerTime] | None = None
) -> list[LayerFigures]:
    """What is known of each layer.

    Args:
        cost: of the network.
        peak: of the device.
        times: of `time_layers`, if they were measured.

    Raises:
        ValueError: if there are not as many times as layers.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, network_cost
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> cost = network_cost(net, (1, 9, 9, 3))
        >>> figures = layer_figures(cost, Peak("a chip", 1e9, 1e9))
        >>> [(row.layer, row.output) for row in figures]
        [('front_end/conv1', (1, 7, 7, 4)), ('front_end/final', (1, 7, 7, 2))]
    """
    if times is None:
        nothing = PassTimes(None, None, None)
        times = [LayerTime(nothing)] * len(cost.layers)
    if len(times) != len(cost.layers):
        raise ValueError(f"times: {len(times)} for {len(cost.layers)} layers")
    pairs = zip(cost.layers, times, strict=True)
    return [_figures(layer, peak, time) for layer, time in pairs]


def _figures(layer: LayerCost, peak: Peak, time: LayerTime) -> LayerFigures:
    ratios = time.over_undilated or (None,) * len(PASSES)
    each = zip(PASSES, layer.passes, time.seconds, ratios, strict=True)
    passes = {
        name: PassFigures(*work, peak.seconds(work), seconds, ratio)
        for name, work, seconds, ratio in each
        if work != NONE
    }
    call = layer.call
    name = f"{call.module}/{call.name}".lstrip("/")
    shape = call.output.shape
    return LayerFigures(
        name, shape, call.dilation, layer.parameters, layer.kept, passes
    )


def layer_json(figures: Sequence[LayerFigures]) -> list[dict[str, Any]]:
    """The figures as plain data, rates and shares of the roofline with them.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, network_cost
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


def layer_table(figures: Sequence[LayerFigures], style: str = "github") -> str:
    """A row a layer, then the sums of modules and of all.

    Three figures with strokes between are those of the forward pass, of the input's
    gradient and of the kernel's. Where times were measured, the table shows them, the
    rates reached and the shares of the roofline; otherwise the work and the least time.

    Args:
        figures: of `layer_figures`.
        style: a format of `tabulate`.

    Example:
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, network_cost
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> cost = network_cost(net, (1, 9, 9, 3))
        >>> figures = layer_figures(cost, Peak("a chip", 1e9, 1e9))
        >>> layer_table(figures, "plain").splitlines()[1].split()[:2]
        ['front_end/conv1', '1×7×7×4']
    """
    modules = dict.fromkeys(_module(row) for row in figures if "/" in row.layer)
    sums = [_sum(m, [r for r in figures if _module(r) == m]) for m in modules]
    whole = _sum("all", figures)
    rows = [*figures, *(sums if len(sums) > 1 else []), whole]
    columns = _timed_columns(rows, whole) if whole.seconds else _work_columns(rows)
    columns = {
        "layer": [row.layer for row in rows],
        "output": ["×".join(map(str, row.output)) for row in rows],
        "dilation": [str(row.dilation or "") for row in rows],
        **columns,
    }
    align = ["left", "left", *["right"] * (len(columns) - 2)]
    return tabulate(columns, "keys", style, disable_numparse=True, colalign=align)


def _module(row: LayerFigures) -> str:
    return row.layer.rpartition("/")[0]


def _sum(name: str, rows: Sequence[LayerFigures]) -> LayerFigures:
    passes: dict[str, PassFigures] = {}
    for row in rows:
        for key, figures in row.passes.items():
            passes[key] = passes[key].plus(figures) if key in passes else figures
    passes = {key: f._replace(over_undilated=None) for key, f in passes.items()}
    parameters, kept = sum(r.parameters for r in rows), sum(r.kept for r in rows)
    return LayerFigures(name, (), 0, parameters, kept, passes)


def _work_columns(rows: Sequence[LayerFigures]) -> dict[str, list[str]]:
    return {
        "parameters": [f"{row.parameters:,}" for row in rows],
        "GFLOP": [_each(row, lambda f: f"{f.flops / 1e9:.3g}") for row in rows],
        "MB": [_each(row, lambda f: f"{f.bytes / 1e6:.3g}") for row in rows],
        "kept, MB": [f"{row.kept / 1e6:.3g}" for row in rows],
        "least ms": [_each(row, lambda f: _ms(f.least_seconds)) for row in rows],
    }


def _timed_columns(
    rows: Sequence[LayerFigures], whole: LayerFigures
) -> dict[str, list[str]]:
    columns = {
        "GFLOP": [_each(row, lambda f: f"{f.flops / 1e9:.3g}") for row in rows],
        "ms": [_each(row, lambda f: _ms(f.seconds)) for row in rows],
        "GFLOP/s": [_each(row, lambda f: f"{(f.rate or 0) / 1e9:.0f}") for row in rows],
        "roofline, %": [
            _each(row, lambda f: f"{100 * (f.roofline or 0):.0f}") for row in rows
        ],
        "time, %": [f"{100 * row.seconds / whole.seconds:.1f}" for row in rows],
    }
    if any(f.over_undilated for row in rows for f in row.passes.values()):
        columns["× undilated"] = [_each(row, _ratio) for row in rows]
    return columns


def _each(row: LayerFigures, text) -> str:
    """Of each pass; a dash where one does not run, nothing where no figure is."""
    known = [text(row.passes[name]) if name in row.passes else "–" for name in PASSES]
    return " / ".join(known) if any(part not in ("", "–") for part in known) else ""


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}"


def _ratio(figures: PassFigures) -> str:
    ratio = figures.over_undilated
    return "" if ratio is None else f"{ratio:.2f}"
