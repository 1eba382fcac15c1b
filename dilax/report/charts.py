"""Training curves as inline SVG: loss, mean IoU and learning rate over the steps.

Matplotlib draws them in marker colours, which are then replaced by variables of the
page's style sheet, so that a chart follows its light or dark theme. Text stays text.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from dilax.report.runs import RunFolder

_SIZE = (4.6, 2.9)  # inches at 72 points: fits on a phone
SERIES = 8  # line colours, --series-0 … of the style sheet
_INK, _FAINT = "#010203", "#040506"  # replaced by currentColor and --line
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_STYLE: Any = {
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "font.size": 11,
    "legend.fontsize": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "dilax",
}


class Line(NamedTuple):
    """A labelled series of values over steps; a final score is a single point."""

    label: str
    steps: list[int]
    values: list[float]
    final: bool = False


class Chart(NamedTuple):
    """A drawn chart.

    Attributes:
        title: short title.
        description: text alternative for screen readers.
        svg: markup for inclusion in HTML.
    """

    title: str
    description: str
    svg: str


def run_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Draw loss, mean IoU and learning rate over the steps, as far as logged.

    Args:
        runs: a single run, drawn with one line per stage, or several, with one line
            per run.
    """
    loss = _lines(runs, ["loss"])
    values = [v for line in loss for v in line.values if not math.isnan(v)]
    wide_range = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    charts = (
        ("loss", "Training loss", loss, "log" if wide_range else "linear"),
        ("iou", "Mean IoU, %", _iou_lines(runs), "linear"),
        ("rate", "Learning rate", _lines(runs, ["learning_rate"]), "log"),
    )
    return [
        _chart(name, title, lines, runs, scale)
        for name, title, lines, scale in charts
        if lines
    ]


def _lines(
    runs: Sequence[RunFolder], names: Sequence[str], factor: float = 1.0
) -> list[Line]:
    """One line per stage of a single run; of several runs, one line per run."""
    lines = []
    for run, name in itertools.product(runs, names):
        series = run.series(name)
        if len(runs) == 1:
            for stage, (steps, values) in series.items():
                scaled = [factor * value for value in values]
                lines.append(Line(stage.replace("_", " "), steps, scaled))
        elif series:
            all_steps, all_values = [], []
            for steps, values in series.values():
                all_steps += [*steps, steps[-1]]
                all_values += [*(factor * v for v in values), math.nan]  # a gap
            lines.append(Line(run.title, all_steps[:-1], all_values[:-1]))
    return lines


def _iou_lines(runs: Sequence[RunFolder]) -> list[Line]:
    """Mean IoU during training as lines, and final scores as single points."""
    names = sorted({name for run in runs for entry in run.metrics for name in entry})
    lines = _lines(runs, [n for n in names if n.startswith("val_mean_iou")], 100.0)
    for run in runs:
        offsets = run.offsets()
        ends = {s.name: offsets[s.name] + run.steps(s) for s in run.config.stages}
        for name, scores in run.stages.items():
            label = name.replace("_", " ") if len(runs) == 1 else run.title
            lines.append(Line(label, [ends[name]], [100 * scores["mean_iou"]], True))
    return lines


def _chart(
    name: str, title: str, lines: list[Line], runs: Sequence[RunFolder], scale: str
) -> Chart:
    labels = [run.title for run in runs]
    if len(runs) == 1:
        labels = [stage.name.replace("_", " ") for stage in runs[0].config.stages]
    starts = {start for run in runs for start in run.offsets().values()} - {0}

    def draw(axes: Any) -> None:
        for line in lines:
            number = labels.index(line.label)
            dash = _DASHES[number // SERIES % len(_DASHES)]
            style = {"marker": "D", "markersize": 5} if line.final else {"ls": dash}
            color = _marker(number % SERIES)
            axes.plot(line.steps, line.values, color=color, label=line.label, **style)
        for start in starts:
            axes.axvline(start, color=_INK, lw=1, ls=(0, (1, 3)), zorder=0)
        axes.set_yscale(scale)
        axes.set_xlabel("step")
        _legend(axes)

    description = f"{title}: {'; '.join(map(_describe, lines))}."
    return Chart(title, description, drawing(name, title, description, draw))


def _describe(line: Line) -> str:
    label, steps, values, final = line
    if final:
        return f"{label} ends at {values[0]:.3g}"
    return (
        f"{label} goes from {values[0]:.3g} to {values[-1]:.3g} over steps "
        f"{steps[0]} to {steps[-1]}"
    )


def _legend(axes: Any) -> None:
    """Place a legend above the chart, with one entry per label."""
    handles, labels = axes.get_legend_handles_labels()
    lines = dict(reversed([*zip(labels, handles, strict=True)]))
    shown = [(handle, label) for label, handle in reversed(lines.items())]
    columns = 4 if max(len(label) for label in labels) < 12 else 2
    axes.legend(
        *zip(*shown, strict=True),
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        frameon=False,
        handlelength=1.4,
        columnspacing=1.0,
        borderpad=0.2,
    )


def drawing(
    name: str, title: str, description: str, draw: Callable[[Any], None]
) -> str:
    """Draw on Matplotlib axes and return an inline SVG element.

    Args:
        name: prefix of all ids, which makes them unique within the page.
        title: title for screen readers.
        description: text alternative for screen readers.
        draw: function that draws on the axes it is given.

    Example:
        >>> svg = drawing("a", "A line", "It rises.", lambda axes: axes.plot([0, 1]))
        >>> svg.startswith("<svg role="), "<desc" in svg, "#010203" in svg
        (True, True, False)
    """
    import matplotlib  # imported late: it takes a second
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(_SIZE, layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, title, description)


def _marker(series: int) -> str:
    """The colour that stands for the style sheet's --series-N until `_inline`."""
    return f"#0708{series:02x}"


def _inline(text: str, name: str, title: str, description: str) -> str:
    """Cut out the SVG element; give it the page's colours and unique ids."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor").replace(_FAINT, "var(--line)")
    for series in range(SERIES):
        text = text.replace(_marker(series), f"var(--series-{series})")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", text, count=1)
    head = f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
    names = (
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    start = text.index(">") + 1
    return head + text[len("<svg") : start] + names + text[start:]
