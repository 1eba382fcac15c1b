"""The page of a run, or of several side by side: one HTML file that needs no other.

It holds its style, its script, its charts and its pictures, forbids itself to load
anything, and is written whole or not at all.
"""

import datetime
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from dilax.report.charts import run_charts
from dilax.report.fields import field_facts, has_field, write_field
from dilax.report.gallery import gallery
from dilax.report.grids import (
    columns,
    confusions,
    facts_grid,
    iou_grid,
    percent,
    speed_grid,
    summary_grid,
)
from dilax.report.paper import paper_columns
from dilax.report.runs import RunFolder, read_runs
from dilax.training import versions, write_text
from dilax.training.serialization import to_json

PAGE = "report.html"
_REST = 30  # a page may be written anew after so many times what it took


def write_page(
    workdir: str | Path, *, data_dir: str = "", measure: bool = False
) -> Path:
    """Writes `report.html` into a run's folder, of what there is by now.

    Args:
        workdir: the folder that `train` writes.
        data_dir: where the data lies now, if it moved.
        measure: measure the effective receptive field of the last stage first, once it
            is trained, unless that was done.

    Returns:
        The file.

    Raises:
        ValueError: if the folder is not a run's.

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
    """Writes one page that sets several runs side by side.

    Args:
        workdirs: folders of runs of one data set.
        path: the file.
        data_dir: where the data lies now, if it moved.

    Raises:
        ValueError: naming a folder that is no run's or is of other classes.

    Example:
        >>> write_comparison(["runs/a", "runs/a"], "compare.html")
        Traceback (most recent call last):
        ValueError: .../runs/a: is named twice; name each run once
    """
    place = Path(path).expanduser()
    write_text(place, _rendered(read_runs(workdirs), data_dir))
    return place


def watcher(workdir: str | Path) -> Callable[[], None]:
    """What `train` takes as `watch`: it keeps the page fresh, and costs little.

    The page is written anew only when the time since it was written is 30 times what
    that took. What goes wrong with it is logged, and the training goes on.

    Example:
        >>> refresh = watcher("runs/a")  # for dilax.train(config, "runs/a", refresh)
    """
    after = 0.0

    def refresh() -> None:
        nonlocal after
        start = time.perf_counter()
        if start < after:
            return
        _try(lambda: write_page(workdir), PAGE)
        end = time.perf_counter()
        after = end + _REST * (end - start)

    return refresh


def _try(action: Callable[[], Any], what: str) -> None:
    """Does what may fail without the page or the run failing with it."""
    try:
        action()
    except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        logging.warning("%s: left out (%s)", what, str(error).partition("\n")[0])


def _rendered(runs: Sequence[RunFolder], data_dir: str) -> str:
    import jinja2  # here: only pages need it

    loader = jinja2.PackageLoader("dilax.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(_content(runs, data_dir))


def _content(runs: Sequence[RunFolder], data_dir: str) -> dict[str, Any]:
    """What the template shows, by the names that it has there."""
    first = runs[0]
    scores = columns(runs)
    papers = paper_columns(first.config.data.dataset, list(first.stages))
    pictures = _gallery(runs, data_dir)
    content = {
        "title": " · ".join(run.title for run in runs),
        "over": f"{_counted(runs)} on {first.spec.name}",
        "status": _statuses(runs),
        "written": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "version": versions(())["dilax"],
        "tiles": _tiles(runs),
        "charts": run_charts(runs),
        "summary": summary_grid(runs),
        "iou": iou_grid(scores, papers, first.spec),
        "papers": " and ".join(dict.fromkeys(paper.split for paper in papers)),
        "marked": bool(first.spec.context_classes),
        "gallery": pictures,
        "gallery_json": json.dumps(pictures).replace("<", "\\u003c"),
        "confusions": confusions(scores, first.spec.classes),
        "fields": [(run.title, field_facts(run)) for run in runs],
        "facts": facts_grid(runs),
        "speed": speed_grid(runs),
        "configurations": [(run.title, to_json(run.config)) for run in runs],
    }
    return {**content, "sections": _sections(content)}


def _counted(runs: Sequence[RunFolder]) -> str:
    return "A run" if len(runs) == 1 else f"{len(runs)} runs"


_SECTIONS = {
    "curves": ("charts", "Curves"),
    "iou": ("iou", "IoU"),
    "images": ("gallery", "Images"),
    "confusion": ("confusions", "Confusion"),
    "field": ("fields", "Receptive field"),
    "run": ("facts", "What was run"),
}


def _sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    return [(at, name) for at, (key, name) in _SECTIONS.items() if content[key]]


def _gallery(runs: Sequence[RunFolder], data_dir: str) -> dict[str, Any]:
    """Its data, or a note why there is none."""
    try:
        found = gallery(runs, data_dir)
    except (ValueError, OSError) as error:
        return {"images": [], "note": f"The data could not be read: {error}"}
    note = "Predictions appear here when the first stage has been evaluated."
    return {**found, "note": note}


def _statuses(runs: Sequence[RunFolder]) -> str:
    if len(runs) == 1:
        return _status(runs[0])
    if all(run.is_done for run in runs):
        return "All stages of all runs are done."
    return " ".join(f"{run.title}: {_status(run)}" for run in runs if not run.is_done)


def _status(run: RunFolder) -> str:
    if run.is_done:
        return f"All {len(run.stages)} stages are done."
    done = f"{len(run.stages)} of {len(run.config.stages)} stages are done"
    if not run.metrics:
        return f"{done}."
    stage, step = run.metrics[-1]["stage"], run.metrics[-1]["step"]
    if stage in run.stages:
        return f"{done}; the next one has not logged yet."
    total = run.config.stage(stage).steps
    at = f"{stage.replace('_', ' ')} was at step {step} of {total}"
    return f"{done}; {at}. Load anew to see more."


def _tiles(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """The figures at the top: of one run its last stage's, of several each one's."""
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
