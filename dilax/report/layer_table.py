"""What each layer of a network costs and takes, as a table and as JSON."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from dilax.models import LayerCost, NetworkCost
from dilax.models.cost import NONE
from dilax.report.layer_times import LayerTime, PassTimes
from dilax.report.roofline import Peak

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
