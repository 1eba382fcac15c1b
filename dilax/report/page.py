"""The HTML report of a run, or a comparison of several runs, in one file.

The file contains its style sheet, script, charts and images, and its content security
policy forbids loading anything else. It is written atomically.
"""

import base64
import datetime
import io
import json
import logging
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dilax.data import DatasetSpec
from dilax.evaluation.evaluate import percent
from dilax.inference import as_rgb
from dilax.report.fields import has_field, summarize_field, write_field
from dilax.report.grids import (
    columns,
    confusions,
    iou_grid,
    mean_iou_grid,
    speed_grid,
    stage_notes,
    summary_grid,
)
from dilax.report.paper import paper_columns
from dilax.report.runs import RunFolder, read_runs, run_charts, stage_title
from dilax.training import open_evaluation, predictions_folder, versions, write_text
from dilax.training.records import read_record
from dilax.training.serialization import to_json

PAGE = "report.html"
SHOWN = 24  # images of the gallery
_REST = 30  # at most 1/31 of the time is spent on writing the page
_SIDE, _QUALITY = 448, 78  # pixels; of WebP


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
    try:
        pictures = gallery(runs, data_dir)
        note = "Predictions appear here once the first stage has been evaluated."
    except (ValueError, OSError) as error:
        pictures, note = {"images": []}, f"The data could not be read: {error}"
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    status = [_status(first)]
    if len(runs) > 1:
        status = [f"{run.title}: {_status(run)}" for run in runs if not run.is_done]
    content = {
        "title": " · ".join(run.title for run in runs),
        "over": f"{count} on {first.spec.name}",
        "status": " ".join(status) or "All runs are complete.",
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
        "gallery_note": note,
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


def _status(run: RunFolder) -> str:
    if run.is_done:
        count = len(run.stages)
        return f"All {count} stages are complete." if count > 1 else "Complete."
    done = f"{len(run.stages)} of {len(run.config.stages)} stages complete"
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
    names = ("mean_iou", "pixel_accuracy", "mean_accuracy")[: 1 if runs[1:] else 3]
    tiles = []
    for run in runs:
        for stage, scores in [*run.stages.items()][-1:]:
            for name in names:
                label = name.replace("_", " ").replace("iou", "IoU")
                note = stage.replace("_", " ")
                if len(runs) > 1:
                    label, note = run.title, f"{label}, {note}"
                value = f"{percent(scores[name])} %"
                tiles.append({"label": label, "value": value, "note": note})
    return tiles


class Predictions(NamedTuple):
    """The saved predictions of a stage.

    Attributes:
        title: title of the run and the stage.
        folder: folder of the prediction files.
        scores: evaluation image → mean IoU, or None where it is undefined.
    """

    title: str
    folder: Path
    scores: dict[int, float | None]

    def ids(self, index: int) -> np.ndarray | None:
        """Read the (h, w) class ids of an image; None if there is no prediction."""
        path = self.folder / f"{index:04d}.png"
        if not path.exists():
            return None
        with Image.open(path) as picture:
            return np.asarray(picture)


def gallery(
    runs: Sequence[RunFolder], data_dir: str = "", shown: int = SHOWN
) -> dict[str, Any]:
    """Collect the images for the page's script, ready for JSON.

    It chooses the worst and the best images, half each, by the mean IoU of the last
    stage with predictions. Without predictions, `images` is empty.

    Label maps are class ids, compressed without loss, so that the script can colour
    them, compare them, and show a single class.

    Args:
        runs: runs on one data set; those evaluated on other images than the first are
            left out.
        data_dir: current location of the data, if it has moved.
        shown: maximum number of images.

    Raises:
        ValueError: if the data cannot be read.
    """
    spec = runs[0].spec
    _, _, source = open_evaluation(runs[0].path, data_dir)
    fields = ["dataset", "val", "variant", "images", "labels", "seed"]
    if runs[0].config.data.dataset == "folder":  # prepared sets are the same anywhere
        fields.append("data_dir")
    images = [[getattr(run.config.data, name) for name in fields] for run in runs]
    stages = []
    for run in (run for run, own in zip(runs, images, strict=True) if own == images[0]):
        for name in run.stages:
            folder = predictions_folder(run.path, name)
            scores = _scores(folder)
            if scores:
                title = stage_title(run, name, len(runs))
                stages.append(Predictions(title, folder, scores))
    indices = chosen_indices(stages[-1].scores, shown) if stages else []
    return {
        "classes": spec.classes,
        "palette": spec.palette,
        "ignore": spec.ignore_label,
        "sources": [stage.title for stage in stages],
        "images": [gallery_image(source[i], i, stages, spec) for i in indices],
        "ranked": len(stages[-1].scores) if stages else 0,
    }


def _scores(folder: Path) -> dict[int, float | None]:
    """Read the scores that evaluation wrote, of the predictions that are there."""
    path, remedy = folder / "scores.json", "delete it; `dilax eval` writes it again"
    scores = read_record(path, remedy)
    if {type(score) for score in scores.values()} - {float, int, type(None)}:
        raise ValueError(f"{path}: is damaged; {remedy}")
    there = {str(int(p.stem)) for p in folder.glob("*.png") if p.stem.isdecimal()}
    return {int(name): scores[name] for name in scores if name in there}


def chosen_indices(scores: dict[int, float | None], shown: int) -> list[int]:
    """Choose the worst and the best images, alternating.

    Example:
        >>> chosen_indices({4: 0.9, 5: 0.1, 6: 0.5, 7: 0.7, 8: None}, 4)
        [5, 4, 6, 7]
    """
    known = {i: score for i, score in scores.items() if score is not None}
    ranked = sorted(known, key=lambda i: (known[i], i))
    shown = min(shown, len(ranked))
    worst = ranked[: (shown + 1) // 2]
    best = ranked[::-1][: shown // 2]
    pairs = [i for pair in zip(worst, best, strict=False) for i in pair]
    return [*pairs, *worst[len(best) :]]


def gallery_image(
    sample: dict, index: int, stages: Sequence[Predictions], spec: DatasetSpec
) -> dict[str, Any]:
    """Encode an image, its labels and its predictions, within 448 × 448 pixels."""
    name = sample.get("id", index)
    name = name.decode() if isinstance(name, bytes) else str(name)
    photo = Image.fromarray(as_rgb(sample["image"]))
    factor = min(1.0, _SIDE / max(photo.size))
    size = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    webp = io.BytesIO()
    small = photo.resize(size, Image.Resampling.LANCZOS)
    small.save(webp, "WEBP", quality=_QUALITY)
    predictions: dict[int, Any] = {}
    for number, stage in enumerate(stages):
        ids = stage.ids(index)
        if ids is not None:
            packed = packed_ids(ids, size)
            predictions[number] = {"ids": packed, "iou": stage.scores.get(index)}
    return {
        "index": index,
        "name": Path(name).name,  # without folders
        "width": size[0],
        "height": size[1],
        "photo": "data:image/webp;base64," + base64.b64encode(webp.getvalue()).decode(),
        "truth": packed_ids(sample["label"], size),
        "predictions": predictions,
    }


def packed_ids(labels: np.ndarray, size: tuple[int, int]) -> str:
    """Resize (h, w) labels to (width, height), compress, and encode as base64.

    Example:
        >>> text = packed_ids(np.array([[7, 0], [255, 1]]), (2, 2))
        >>> list(zlib.decompress(base64.b64decode(text)))
        [7, 0, 255, 1]
    """
    picture = Image.fromarray(labels.astype(np.uint8, copy=False))
    small = picture.resize(size, Image.Resampling.NEAREST)
    return base64.b64encode(zlib.compress(small.tobytes(), 9)).decode()
