"""Curves of a run as inline SVG that follows the page: its font, its light or dark.

Matplotlib draws; what it draws in a marker colour becomes a variable of the page's
style sheet, and text stays text.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from dilax.report.runs import RunFolder

_SIZE = (4.6, 2.9)  # inches at 72 points: wide enough for a phone
SERIES = 8  # colours of lines, --series-0 … of the style sheet
_INK, _FAINT = "#010203", "#040506"  # stand for currentColor and --line
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


class Line(NamedTuple):
    """A name, and values at steps: joined, or final ones that stand alone."""

    label: str
    steps: list[int]
    values: list[float]
    final: bool = False


class Chart(NamedTuple):
    """A drawn chart.

    Attributes:
        title: short.
        told: its content in words, for who does not see it.
        svg: markup that stands in HTML.
    """

    title: str
    told: str
    svg: str


def run_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Loss, mean IoU and learning rate over the steps; what was not logged is left out.

    Args:
        runs: one, whose stages are told apart, or several, which are.
    """
    drawn = []
    for name, title, scale, lines in (
        ("loss", "Training loss", _loss_scale, _lines(runs, ("loss",))),
        ("iou", "Mean IoU, %", lambda lines: "linear", _accuracy(runs)),
        ("rate", "Learning rate", lambda lines: "log", _lines(runs, _RATE)),
    ):
        if lines:
            drawn.append(_chart(name, title, lines, runs, scale(lines)))
    return drawn


_RATE = ("learning_rate",)


def _lines(runs: Sequence[RunFolder], names: Sequence[str], factor=1.0) -> list[Line]:
    """A line a stage, or a line a run whose stages follow each other."""
    found: list[Line] = []
    for run, name in itertools.product(runs, names):
        series = run.series(name)
        if len(runs) == 1:
            found += [
                Line(_words(stage), x, _scaled(y, factor))
                for stage, (x, y) in series.items()
            ]
        elif series:
            found.append(_joined(run.title, [*series.values()], factor))
    return found


def _joined(title: str, parts: list[tuple[list, list]], factor: float) -> Line:
    """The stages of a run as one line, with gaps between them."""
    steps, values = [], []
    for x, y in parts:
        steps += [*x, x[-1]]
        values += [*_scaled(y, factor), math.nan]
    return Line(title, steps[:-1], values[:-1])


def _scaled(values: list[float], factor: float) -> list[float]:
    return [factor * value for value in values]


def _words(stage: str) -> str:
    return stage.replace("_", " ")


def _accuracy(runs: Sequence[RunFolder]) -> list[Line]:
    """What was measured on the way, and the final scores as single points."""
    monitors = sorted({k for run in runs for line in run.metrics for k in line})
    lines = _lines(runs, [k for k in monitors if k.startswith("val_mean_iou")], 100.0)
    for run in runs:
        offsets = run.offsets()
        ends = {s.name: offsets[s.name] + run.steps(s) for s in run.config.stages}
        for name, scores in run.stages.items():
            label = _words(name) if len(runs) == 1 else run.title
            lines.append(Line(label, [ends[name]], [100 * scores["mean_iou"]], True))
    return lines


def _loss_scale(lines: Sequence[Line]) -> str:
    values = [v for line in lines for v in line.values if not math.isnan(v)]
    return "log" if min(values) > 0 and max(values) > 20 * min(values) else "linear"


def _chart(
    name: str, title: str, lines: list[Line], runs: Sequence[RunFolder], scale: str
) -> Chart:
    names = [run.title for run in runs]
    if len(runs) == 1:
        names = [_words(stage.name) for stage in runs[0].config.stages]

    def draw(axes: Any) -> None:
        for line in lines:
            _draw_line(axes, names.index(line.label), line)
        axes.set_yscale(scale)
        _mark_stages(axes, runs)
        axes.set_xlabel("step")
        _legend(axes)

    told = _told(title, lines)
    return Chart(title, told, drawing(name, title, told, draw))


def _draw_line(axes: Any, place: int, line: Line) -> None:
    dash = _DASHES[place // SERIES % len(_DASHES)]
    look = {"marker": "D", "markersize": 5} if line.final else {"linestyle": dash}
    colour = _marker(place % SERIES)
    axes.plot(line.steps, line.values, color=colour, label=line.label, **look)


def _legend(axes: Any) -> None:
    """One entry a name, above the chart."""
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


def _mark_stages(axes: Any, runs: Sequence[RunFolder]) -> None:
    """A line where a stage of one of the runs begins."""
    starts = {start for run in runs for start in run.offsets().values()}
    for start in starts - {0}:
        axes.axvline(start, color=_INK, linewidth=1, linestyle=(0, (1, 3)), zorder=0)


def _told(title: str, lines: Sequence[Line]) -> str:
    parts = []
    for label, x, y, final in lines:
        if final:
            parts.append(f"{label} ends at {y[0]:.3g}")
        else:
            span = f"steps {x[0]} to {x[-1]}"
            parts.append(f"{label} goes from {y[0]:.3g} to {y[-1]:.3g} over {span}")
    return f"{title}: {'; '.join(parts)}."


def drawing(name: str, title: str, told: str, draw: Callable[[Any], None]) -> str:
    """An SVG picture of what `draw` puts into Matplotlib's axes.

    Args:
        name: begins the ids in it, so that several pictures stand in one page.
        title: for screen readers, as `told`.
        told: the content in words.
        draw: takes the axes.

    Example:
        >>> svg = drawing("a", "A line", "It rises.", lambda axes: axes.plot([0, 1]))
        >>> svg.startswith("<svg role="), "<desc" in svg, "#010203" in svg
        (True, True, False)
    """
    import matplotlib  # here: it takes a second, and few need it
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style()):
        figure = Figure(_SIZE, layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inlined(buffer.getvalue(), name, title, told)


def _style() -> Any:
    inks = ("text", "axes.label", "xtick", "ytick")
    keys = [f"{k}.color" if k != "axes.label" else "axes.labelcolor" for k in inks]
    return {
        **dict.fromkeys(keys, _INK),
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


def _marker(place: int) -> str:
    return f"#0708{place:02x}"


def _inlined(text: str, name: str, title: str, told: str) -> str:
    """The SVG element alone, with the page's colours and ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor").replace(_FAINT, "var(--line)")
    for place in range(SERIES):
        text = text.replace(_marker(place), f"var(--series-{place})")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", text, count=1)
    head = f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
    names = (
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(told)}</desc>'
    )
    start = text.index(">") + 1
    return head + text[len("<svg") : start] + names + text[start:]
