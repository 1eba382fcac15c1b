"""The HTML report of a run, or a comparison of several runs, in one file.

The file contains its style sheet, script, charts and images, and its content security
policy forbids loading anything else. It is written atomically.
"""

import datetime
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dilax.report.charts import run_charts
from dilax.report.fields import has_field, summarize_field, write_field
from dilax.report.gallery import gallery
from dilax.report.grids import (
    columns,
    confusions,
    iou_grid,
    mean_iou_grid,
    percent,
    speed_grid,
    stage_notes,
    summary_grid,
)
from dilax.report.paper import paper_columns
from dilax.report.runs import RunFolder, read_runs
from dilax.training import versions, write_text
from dilax.training.serialization import to_json

PAGE = "report.html"
_REST = 30  # at most 1/31 of the time is spent on writing the page


def write_page(
    workdir: str | Path, *, data_dir: str = "", measure: bool = False
) -> Path:
    """Write `report.html` into a run's folder; the run may still be training.

    Args:
        workdir: the folder that `train` writes.
        data_dir: current location of the data, if it has moved.
        measure: also measure the effective receptive field of the last stage, if the
            run is complete and it has not been measured.

    Returns:
        Path of the page.

    Raises:
        ValueError: if `workdir` is not the folder of a run.

    Example:
        >>> write_page("nowhere")
        Traceback (most recent call last):
        ValueError: .../nowhere/config.json: not the folder of a run ...
    """
    [run] = read_runs([workdir])
    stage = run.config.stages[-1].name
    if measure and run.is_done and not has_field(run.path, stage):
        _try(lambda: write_field(run.path, stage, data_dir), "effective field")
    path = run.path / PAGE
    write_text(path, _rendered([run], data_dir))
    return path


def write_comparison(
    workdirs: Sequence[str | Path], path: str | Path, *, data_dir: str = ""
) -> Path:
    """Write one page that compares several runs.

    Args:
        workdirs: folders of runs of one data set.
        path: file to write.
        data_dir: current location of the data, if it has moved.

    Returns:
        Path of the page.

    Raises:
        ValueError: if a folder is not a run's, is given twice, or has other classes.

    Example:
        >>> write_comparison(["runs/a", "runs/a"], "compare.html")
        Traceback (most recent call last):
        ValueError: .../runs/a: is given twice; name each run once
    """
    path = Path(path).expanduser()
    write_text(path, _rendered(read_runs(workdirs), data_dir))
    return path


def watcher(workdir: str | Path, measure: bool = False) -> Callable[[], None]:
    """Return a callback for `train` that keeps the page of a run up to date.

    The page is written again only after 30 times as long as the last writing took.
    Errors are logged; training goes on.

    Args:
        workdir: the folder of the run.
        measure: as for `write_page`.

    Example:
        >>> refresh = watcher("runs/a")  # for dilax.train(config, "runs/a", refresh)
    """
    after = 0.0

    def refresh() -> None:
        nonlocal after
        start = time.perf_counter()
        if start < after:
            return
        _try(lambda: write_page(workdir, measure=measure), PAGE)
        end = time.perf_counter()
        after = end + _REST * (end - start)

    return refresh


def _try(action: Callable[[], Any], what: str) -> None:
    """Run an optional step; log its errors instead of raising them."""
    try:
        action()
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        logging.warning("%s: skipped (%s)", what, reason)


def _rendered(runs: Sequence[RunFolder], data_dir: str) -> str:
    import jinja2  # here: only pages need it

    loader = jinja2.PackageLoader("dilax.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(_content(runs, data_dir))


def _content(runs: Sequence[RunFolder], data_dir: str) -> dict[str, Any]:
    """The variables of the template."""
    first = runs[0]
    scores = columns(runs)
    papers = paper_columns(first.config.data.dataset, list(first.stages))
    pictures = _gallery(runs, data_dir)
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    content = {
        "title": " · ".join(run.title for run in runs),
        "over": f"{count} on {first.spec.name}",
        "status": _statuses(runs),
        "written": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "version": versions(())["dilax"],
        "tiles": _tiles(runs),
        "notes": stage_notes(runs),
        "charts": run_charts(runs),
        "mean_iou": mean_iou_grid(runs),
        "iou": iou_grid(scores, papers, first.spec),
        "papers": " and ".join(dict.fromkeys(paper.split for paper in papers)),
        "marked": bool(first.spec.context_classes),
        "gallery": pictures,
        "gallery_json": json.dumps(pictures).replace("<", "\\u003c"),
        "confusions": confusions(scores, first.spec.classes),
        "fields": [(run.title, summarize_field(run)) for run in runs],
        "summary": summary_grid(runs),
        "speed": speed_grid(runs),
        "configurations": [(run.title, to_json(run.config)) for run in runs],
    }
    sections = [(at, name) for at, (key, name) in _SECTIONS.items() if content[key]]
    return {**content, "sections": sections}


_SECTIONS = {
    "stages": ("notes", "Stages"),
    "curves": ("charts", "Curves"),
    "iou": ("iou", "IoU"),
    "images": ("gallery", "Images"),
    "confusion": ("confusions", "Confusion"),
    "field": ("fields", "Receptive field"),
    "run": ("summary", "Configuration"),
}


def _gallery(runs: Sequence[RunFolder], data_dir: str) -> dict[str, Any]:
    """The gallery's data, or a note that says why there is none."""
    try:
        found = gallery(runs, data_dir)
    except (ValueError, OSError) as error:
        return {"images": [], "note": f"The data could not be read: {error}"}
    note = "Predictions appear here once the first stage has been evaluated."
    return {**found, "note": note}


def _statuses(runs: Sequence[RunFolder]) -> str:
    if len(runs) == 1:
        return _status(runs[0])
    if all(run.is_done for run in runs):
        return "All runs are complete."
    return " ".join(f"{run.title}: {_status(run)}" for run in runs if not run.is_done)


def _status(run: RunFolder) -> str:
    if run.is_done:
        return f"All {len(run.stages)} stages are complete."
    done = f"{len(run.stages)} of {len(run.config.stages)} stages are complete"
    if not run.metrics:
        return f"{done}."
    stage, step = run.metrics[-1]["stage"], run.metrics[-1]["step"]
    if stage in run.stages:
        return f"{done}; the next stage has not logged anything yet."
    total = run.config.stage(stage).steps
    at = f"{stage.replace('_', ' ')} is at step {step} of {total}"
    return f"{done}; {at}. Reload the page to update it."


def _tiles(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """Key figures of the last stage of each run, for the top of the page."""
    if len(runs) > 1:
        return [
            {
                "label": run.title,
                "value": percent(scores["mean_iou"]),
                "note": f"% mean IoU, {name.replace('_', ' ')}",
            }
            for run in runs
            for name, scores in [*run.stages.items()][-1:]
        ]
    [run] = runs
    if not run.stages:
        return []
    name, scores = [*run.stages.items()][-1]
    shown = {
        "mean IoU": "mean_iou",
        "pixel accuracy": "pixel_accuracy",
        "mean accuracy": "mean_accuracy",
    }
    tiles = [
        {"label": label, "value": percent(scores[key]) + " %"}
        for label, key in shown.items()
    ]
    tiles[0]["note"] = name.replace("_", " ")
    return tiles
