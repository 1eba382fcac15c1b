"""Data of the page's gallery: images, ground truth and predictions.

Label maps are stored as class ids, zlib-compressed (RFC 1950) without loss, so that the
page's script can colour them, compare them, and show a single class.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dilax.data import DatasetSpec
from dilax.evaluation import image_scores
from dilax.inference import as_rgb
from dilax.report.runs import RunFolder, stage_title
from dilax.training import open_evaluation, predictions_folder
from dilax.training.records import read_record

SHOWN = 24
_SIDE, _QUALITY = 448, 78


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
    stages = _predictions(runs, source)
    indices = chosen_indices(stages[-1].scores, shown) if stages else []
    return {
        "classes": spec.classes,
        "palette": spec.palette,
        "ignore": spec.ignore_label,
        "sources": [stage.title for stage in stages],
        "images": [gallery_image(source[i], i, stages, spec) for i in indices],
        "ranked": len(stages[-1].scores) if stages else 0,
    }


def _same_images(run: RunFolder, first: RunFolder) -> bool:
    """Whether an index means the same evaluation image in both runs."""
    one, other = run.config.data, first.config.data
    fields = ["dataset", "val", "variant", "images", "labels", "seed"]
    if one.dataset == "folder":  # prepared sets are the same in any folder
        fields.append("data_dir")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _predictions(
    runs: Sequence[RunFolder], source: Sequence[dict]
) -> list[Predictions]:
    found = []
    for run in (run for run in runs if _same_images(run, runs[0])):
        for name in run.stages:
            folder = predictions_folder(run.path, name)
            scores = _scores(folder, run.spec, source)
            if scores:
                title = stage_title(run, name, len(runs))
                found.append(Predictions(title, folder, scores))
    return found


def _scores(
    folder: Path, spec: DatasetSpec, source: Sequence[dict]
) -> dict[int, float | None]:
    """Read the scores that evaluation wrote, or compute them for older runs."""
    there = {int(p.stem) for p in folder.glob("*.png") if p.stem.isdecimal()}
    path = folder / "scores.json"
    if path.exists():
        remedy = "delete it; `dilax eval` writes it again"
        scores = read_record(path, remedy)
        known = {str(i): i for i in there}
        if {type(score) for score in scores.values()} - {float, int, type(None)}:
            raise ValueError(f"{path}: is damaged; {remedy}")
        return {known[name]: scores[name] for name in scores if name in known}
    found: dict[int, float | None] = {}
    stage = Predictions("", folder, {})
    for index in sorted(there & set(range(len(source)))):
        label, ids = source[index]["label"], stage.ids(index)
        assert ids is not None
        score = image_scores(spec.classes, label, ids, spec.ignore_label).mean_iou
        found[index] = None if score != score else score
    return found


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
