"""The tables of a run's page: IoU, confusion, configuration, speed and memory."""

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dilax.data import DatasetSpec
from dilax.evaluation.evaluate import percent
from dilax.models import param_shapes
from dilax.report.paper import PaperColumn
from dilax.report.runs import RunFolder, stage_title
from dilax.training import StageConfig
from dilax.training.build import build_model


class Head(NamedTuple):
    """A column head; the paper's columns are shown in italics."""

    text: str
    paper: bool = False


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        name: row head.
        cells: one text per column.
        number: train id of the row's class, or None.
        colour: CSS colour of that class.
        best: indices of our best results, if there are worse ones.
        strong: whether a line separates it from the rows above.
    """

    name: str
    cells: list[str]
    number: int | None = None
    colour: str = ""
    best: frozenset[int] = frozenset()
    strong: bool = False


class Grid(NamedTuple):
    """A table; `heads[0]` is the head of the column of row names."""

    heads: list[Head]
    rows: list[Row]


Columns = Mapping[str, Mapping[str, Any]]


def columns(runs: Sequence[RunFolder]) -> dict[str, dict[str, Any]]:
    """Title → scores, for each finished stage of each run."""
    return {
        stage_title(run, name, len(runs)): scores
        for run in runs
        for name, scores in run.stages.items()
    }


def iou_grid(
    scores: Columns, papers: Sequence[PaperColumn], spec: DatasetSpec
) -> Grid | None:
    """Tabulate the IoU per class and the means; None if no stage is finished.

    The paper's column of a stage is next to ours; others are at the end.
    """
    if not scores:
        return None
    ours = [*scores]
    places = [(i, Head(title), scores[title]) for i, title in enumerate(ours)]
    for paper in papers:
        stage = paper.stage.replace("_", " ")
        place = ours.index(stage) if stage in ours else len(ours)
        places.append((place, Head(paper.title, True), paper._asdict()))
    places.sort(key=lambda column: column[0])  # stable: the paper's after ours
    heads, each = [head for _, head, _ in places], [column for *_, column in places]
    rows = []
    for i, name in enumerate(spec.classes):
        values = [column["iou_per_class"].get(name) for column in each]
        shown = f"{name} *" if name in spec.context_classes else name
        colour = "rgb({},{},{})".format(*spec.palette[i])
        rows.append(_row(shown, values, heads)._replace(number=i, colour=colour))
    for key in ("mean_iou", "pixel_accuracy", "mean_accuracy"):
        title = key.replace("_", " ").replace("iou", "IoU")
        row = _row(title, [column.get(key) for column in each], heads)
        rows.append(row._replace(strong=key == "mean_iou"))
    return Grid([Head("IoU, %"), *heads], rows)


def _row(name: str, values: Sequence[float | None], heads: Sequence[Head]) -> Row:
    cells = [percent(value) for value in values]
    ours = [i for i, head in enumerate(heads) if not head.paper]
    most = max((v for i in ours if (v := values[i]) is not None), default=0)
    best = {i for i in ours if cells[i] == percent(most)}
    if not most or len(best) == len(ours):  # nothing is better than anything else
        best = set()
    return Row(name, cells, best=frozenset(best))


def mean_iou_grid(runs: Sequence[RunFolder]) -> Grid | None:
    """Tabulate mean IoU, one row per stage and column per run; None for one run."""
    if len(runs) < 2:
        return None
    heads, rows = [Head(run.title) for run in runs], []
    for name in dict.fromkeys(name for run in runs for name in run.stages):
        values = [run.stages.get(name, {}).get("mean_iou") for run in runs]
        rows.append(_row(name.replace("_", " "), values, heads))
    return Grid([Head("mean IoU, %"), *heads], rows)


def confusions(scores: Columns, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Confusion matrices in percent of their rows, for the template."""
    found = []
    for title, column in scores.items():
        counts = zip(classes, column["confusion"], strict=True)
        rows = {name: [100 * n / max(1, sum(row)) for n in row] for name, row in counts}
        found.append({"title": title, "rows": rows})
    return found


def stage_notes(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Stage of any of the runs → what it does, in a few sentences."""
    notes: dict[str, str] = {}
    for run in runs:
        for stage in run.config.stages:
            notes.setdefault(stage.name.replace("_", " "), _stage_note(run, stage))
    return notes


def _stage_note(run: RunFolder, stage: StageConfig) -> str:
    network = (stage.model or run.config.model).network
    front_end = "the front end" + f" ({network})" * (network != "front_end")
    start = f"“{stage.start.replace('_', ' ')}”"
    rates = [row[1] for row in stage.context]
    if stage.crf and stage.crf.kind == "dense":
        how = "were searched on validation images" if stage.crf.search else "are given"
        return f"Refines {start} by a dense CRF, whose parameters {how}."
    if stage.crf:
        own = " The network is trained with it." if stage.trains == "all" else ""
        return (
            f"Refines {start} by a CRF-RNN, which is a CRF with trained weights.{own}"
        )
    dilations = f"dilations {', '.join(map(str, rates))}"
    if stage.trains == "context" and {*rates} == {1}:
        note = (
            f"Trains a context module without dilation on the scores of {start}: a "
            "control that shows what dilation contributes."
        )
    elif stage.trains == "context":
        note = (
            f"Trains a context module, which refines the scores of {start} by layers "
            f"with {dilations}. The front end is frozen."
        )
    elif rates and stage.start and run.config.stage(stage.start).context:
        note = f"Trains {front_end} and the context module of {start} together."
    elif rates:
        note = (
            f"Trains {front_end} together with a context module, which refines its "
            f"scores by layers with {dilations}."
        )
    else:
        note = f"Trains {front_end}, which turns an image into class scores."
    model = build_model(run.config, stage, run.spec.num_classes)
    with contextlib.suppress(ValueError):  # SegNet's scores do not all see the same
        side = model.receptive_field.size
        note += f" Each score depends on {side} × {side} pixels."
    return note


def summary_grid(runs: Sequence[RunFolder]) -> Grid:
    """Summarize configuration, data and machine, one column per run."""
    found = [_summary(run) for run in runs]
    names = dict.fromkeys(name for summary in found for name in summary)
    rows = [Row(name, [summary.get(name, "–") for summary in found]) for name in names]
    heads = [Head(run.title if len(runs) > 1 else "") for run in runs]
    return Grid([Head(""), *heads], rows)


def _summary(run: RunFolder) -> dict[str, str]:
    config, machine = run.config, run.machine
    data, images = config.data, run.results.get("images")
    evaluated = data.val + (f", {images} images" if images else "")
    stages = [
        f"{stage.name.replace('_', ' ')} ({run.steps(stage) or 'no'} steps)"
        for stage in config.stages
    ]
    last = config.stages[-1]
    network = (last.model or config.model).network.replace("_", " ")
    if last.context:
        network += f" with a context module of {len(last.context)} layers"
    summary = {
        "configuration": f"{config.name}, seed {config.seed}, {config.dtype}",
        "data": f"{run.spec.name}, {run.spec.num_classes} classes; trained on "
        f"{data.train}, evaluated on {evaluated}",
        "stages": " → ".join(stages),
        "network": f"{network}, {parameters(run):,} parameters",
    }
    if machine:
        versions = machine["versions"].items()
        summary["device"] = f"{machine['devices']} × {machine['device']}" + (
            f", {machine['processes']} processes" * (machine["processes"] > 1)
        )
        summary["system"] = machine["system"]
        summary["versions"] = ", ".join(f"{name} {v}" for name, v in versions if v)
    return summary


def parameters(run: RunFolder) -> int:
    """Number of parameters of the last stage's network."""
    model = build_model(run.config, run.config.stages[-1], run.spec.num_classes)
    leaves = jax.tree.leaves(param_shapes(model, len(run.spec.mean)))
    return sum(leaf.size for leaf in leaves)


def speed_grid(runs: Sequence[RunFolder]) -> Grid | None:
    """Tabulate speed and memory, one row per stage; None if nothing was recorded."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        seconds, waits = run.series("step_seconds"), run.series("input_wait")
        images = run.results.get("images")
        for stage in run.config.stages:
            done = run.machine.get("stages", {}).get(stage.name, {})
            cells = found[stage_title(run, stage.name, len(runs))] = {}
            if stage.name in seconds:  # medians, because the first steps compile
                step = statistics.median(seconds[stage.name][1])
                cells["ms per step"] = _figure(1000 * step)
                cells["images per s"] = _figure(stage.batch_size / step)
            if stage.name in waits:
                wait = statistics.median(waits[stage.name][1])
                cells["input wait"] = f"{100 * wait:.0f} %"
            if images and (evaluation := done.get("evaluation_seconds")):
                cells["eval, ms per image"] = _figure(1000 * evaluation / images)
            for place, size in done.get("memory", {}).items():
                cells[f"{place} GB"] = f"{size / 1e9:.2f}"
    heads = [head for head in _SPEED if any(head in cells for cells in found.values())]
    rows = [
        Row(title, [cells.get(head, "–") for head in heads])
        for title, cells in found.items()
        if cells
    ]
    return Grid([Head(""), *map(Head, heads)], rows) if rows else None


_SPEED = (
    *("ms per step", "images per s", "input wait", "eval, ms per image"),
    *("host GB", "device GB"),
)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
