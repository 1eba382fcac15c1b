"""The folders of runs: what is in them, and what was logged as curves (inline SVG).

A run may still be training. Matplotlib draws the curves in marker colours, which are
then replaced by variables of the page's style sheet, so that a chart follows its light
or dark theme. Text stays text.
"""

import dataclasses
import io
import itertools
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from dilax.data import DatasetSpec
from dilax.training import Config, StageConfig, from_json, read_machine
from dilax.training.records import read_metrics
from dilax.training.run import read_results


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run, as read from its files.

    Attributes:
        path: the folder.
        title: short title that is unique among the runs of a page.
        config: configuration of the run.
        spec: specification of its data set.
        results: content of `results.json`; no stages if none is complete.
        metrics: entries of `metrics.jsonl`.
        machine: content of `machine.json`, or an empty dict.
    """

    path: Path
    title: str
    config: Config
    spec: DatasetSpec
    results: dict[str, Any]
    metrics: list[dict[str, Any]]
    machine: dict[str, Any]

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage name → scores, for the completed stages."""
        return self.results["stages"]

    @property
    def is_done(self) -> bool:
        """Whether all stages are complete."""
        return len(self.stages) == len(self.config.stages)

    def steps(self, stage: StageConfig) -> int:
        """Optimizer steps of a stage; 0 for a dense CRF, which is not trained."""
        return 0 if stage.crf_kind == "dense" else stage.steps

    def spans(self) -> dict[str, tuple[int, int]]:
        """Stage name → (first, last) step, counted since the run began."""
        stages = self.config.stages
        ends = itertools.accumulate(map(self.steps, stages))
        return {
            s.name: (e - self.steps(s), e) for s, e in zip(stages, ends, strict=True)
        }

    def series(self, name: str) -> dict[str, tuple[list[int], list[float]]]:
        """Stage name → (steps since the run began, values) of a logged scalar."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        spans = self.spans()
        for line in self.metrics:
            if line.get(name) is not None and line["stage"] in spans:
                steps, values = found.setdefault(line["stage"], ([], []))
                steps.append(spans[line["stage"]][0] + line["step"])
                values.append(float(line[name]))
        return found


def read_runs(workdirs: Sequence[str | Path]) -> list[RunFolder]:
    """Read the folders of runs, and give each a short, unique title.

    Raises:
        ValueError: if a folder is not a run's, is given twice, or its classes differ
            from those of the first run.
    """
    paths = [Path(workdir).expanduser().resolve() for workdir in workdirs]
    repeated = [path for path in paths if paths.count(path) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]}: is given twice; name each run once")
    titles = _titles(paths)
    runs = [_read(path, title) for path, title in zip(paths, titles, strict=True)]
    for run in runs:
        if run.spec.classes != runs[0].spec.classes:
            pairs = itertools.zip_longest(runs[0].spec.classes, run.spec.classes)
            differing = [
                (i, *pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]
            ]
            number, one, other = differing[0]
            raise ValueError(
                f"{run.path}: has other classes than {runs[0].path}: class {number} is "
                f"{other!r}, not {one!r}, and {len(differing) - 1} more differ; "
                "compare runs of one data set"
            )
    return runs


def stage_title(run: RunFolder, stage: str, runs: int) -> str:
    """The title of a stage on a page of `runs` runs."""
    words = stage.replace("_", " ")
    return words if runs == 1 else f"{run.title}: {words}"


def _titles(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    longest = max(len(path.parts) for path in paths)
    for parts in range(1, longest):
        titles = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(titles)) == len(paths):
            break
    return titles


def _read(path: Path, title: str) -> RunFolder:
    config = from_json(Config, path / "config.json")
    spec = from_json(DatasetSpec, path / "spec.json")
    nothing = {"stages": {}, "images": None, "split": config.data.val}
    results = {**nothing, **read_results(path, config)}
    machine = read_machine(path)
    return RunFolder(path, title, config, spec, results, read_metrics(path), machine)


_CHART = (4.6, 2.9)  # inches at 72 points: fits on a phone
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
    """The values of a stage over the steps; `final` is its score after training."""

    label: str
    steps: list[int]
    values: list[float]
    final: bool = False


class Chart(NamedTuple):
    """A drawn chart.

    Attributes:
        title: short title.
        svg: markup for inclusion in HTML.
    """

    title: str
    svg: str


def run_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Draw what was logged over the steps: loss, mean IoU and learning rate.

    Scores on stored maps are at the stride of the network, where small objects and
    boundaries hardly count. They have a chart of their own, so that nobody reads the
    step from them to the scores at full resolution as a drop.

    Args:
        runs: a single run, drawn in one colour per stage, or several, in one colour per
            run.
    """
    logged = {name for run in runs for entry in run.metrics for name in entry}
    on_maps = sorted(n for n in logged if n.startswith("val_mean_iou_stride_"))
    loss = _lines(runs, ["loss"])
    losses = [value for line in loss for value in line.values]
    wide = bool(losses) and 0 < 20 * min(losses) < max(losses)
    iou = _lines(runs, ["val_mean_iou"], 100.0)
    for run in runs:
        for name, scores in run.stages.items():
            score, (_, end) = 100 * scores["mean_iou"], run.spans()[name]
            iou.append(Line(_label(runs, run, name), [end], [score], True))
    charts = (
        ("loss", "Training loss", loss, "log" if wide else "linear"),
        ("iou", "Mean IoU at full resolution, %", iou, "linear"),
        ("maps", "Mean IoU on stored maps, %", _lines(runs, on_maps, 100.0), "linear"),
        ("rate", "Learning rate", _lines(runs, ["learning_rate"]), "log"),
    )
    stages = [(run, stage.name) for run in runs for stage in run.config.stages]
    labels = [*dict.fromkeys(_label(runs, *stage) for stage in stages)]
    starts = {run.spans()[stage][0] for run, stage in stages} - {0}
    steps = {step for chart in charts for line in chart[2] for step in line.steps}
    return [_chart(*chart, labels, starts, max(steps)) for chart in charts if chart[2]]


def _label(runs: Sequence[RunFolder], run: RunFolder, stage: str) -> str:
    return stage.replace("_", " ") if len(runs) == 1 else run.title


def _lines(
    runs: Sequence[RunFolder], names: Sequence[str], factor: float = 1.0
) -> list[Line]:
    return [
        Line(_label(runs, run, stage), steps, [factor * value for value in values])
        for run in runs
        for name in names
        for stage, (steps, values) in run.series(name).items()
    ]


def _chart(
    name: str,
    title: str,
    lines: list[Line],
    scale: str,
    labels: list[str],
    starts: set[int],
    last: int,
) -> Chart:
    """Draw lines over the steps; dotted vertical lines mark the starts of stages."""
    import matplotlib  # imported late: it takes a second
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    named: set[str] = set()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(_CHART, layout="constrained")
        canvas, buffer = FigureCanvasSVG(figure), io.StringIO()
        axes = figure.add_subplot()
        for line in lines:
            number = labels.index(line.label)
            style: dict[str, Any] = {"marker": "D", "markersize": 5}
            if not line.final:  # dots at its ends show a line of a few steps, too
                dash = _DASHES[number // SERIES % len(_DASHES)]
                style = {"ls": dash, "marker": ".", "markevery": [0, -1]}
            if line.label not in named:  # one entry of the legend per label
                style["label"] = line.label
            named.add(line.label)
            axes.plot(line.steps, line.values, color=_marker(number % SERIES), **style)
        for start in starts:  # those of stages to come are outside
            axes.axvline(start, color=_INK, lw=1, ls=(0, (1, 3)), zorder=0)
        axes.set(yscale=scale, xlabel="step", xlim=(-0.03 * last, 1.03 * last))
        axes.legend(
            ncols=4 if max(map(len, named)) < 12 else 2,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            frameon=False,
            handlelength=1.4,
            columnspacing=1.0,
            borderpad=0.2,
        )
        axes.spines[["top", "right"]].set_visible(False)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    description = f"{title}: {'; '.join(map(_describe, lines))}."
    return Chart(title, _inline(buffer.getvalue(), name, title, description))


def _describe(line: Line) -> str:
    label, steps, values, _ = line
    if len(values) == 1:
        return f"{label} is {values[0]:.3g} at step {steps[0]}"
    return (
        f"{label} goes from {values[0]:.3g} to {values[-1]:.3g} over steps "
        f"{steps[0]} to {steps[-1]}"
    )


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
