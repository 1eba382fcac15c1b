"""Images of a run for its page: photographs, truth and predictions, as small data.

Label maps travel as class ids, deflated (RFC 1950), which a browser inflates exactly:
so it can colour them, compare them, and show one class alone.
"""

import base64
import io
import json
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

SHOWN = 24
_SIDE, _QUALITY = 448, 78


class Predictions(NamedTuple):
    """The kept predictions of a stage.

    Attributes:
        title: of the run and the stage.
        folder: of the files.
        scores: mean IoU of each evaluation image whose prediction is there, or None.
    """

    title: str
    folder: Path
    scores: dict[int, float | None]

    def ids(self, index: int) -> np.ndarray | None:
        """(h, w) class ids of an image, if they are there."""
        path = self.folder / f"{index:04d}.png"
        if not path.exists():
            return None
        with Image.open(path) as picture:
            return np.asarray(picture)


def gallery(
    runs: Sequence[RunFolder], data_dir: str = "", shown: int = SHOWN
) -> dict[str, Any]:
    """What the page's script shows, ready for JSON; `images` is empty without any.

    Worst and best are by the last stage that has predictions, in equal parts.

    Args:
        runs: of one data set; those that evaluate on other images than the first are
            left out.
        data_dir: where the data lies now, if it moved.
        shown: how many images at most.

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
        "images": [_image(source[i], i, stages, spec) for i in indices],
        "ranked": len(stages[-1].scores) if stages else 0,
    }


def _same_images(run: RunFolder, first: RunFolder) -> bool:
    """Whether image 17 of one is image 17 of the other."""
    one, other = run.config.data, first.config.data
    fields = ["dataset", "val", "variant", "images", "labels", "seed"]
    if one.dataset == "folder":  # prepared sets are the same wherever they lie
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
    """As evaluation wrote them; counted now for runs older than that."""
    there = {int(p.stem) for p in folder.glob("*.png") if p.stem.isdecimal()}
    path = folder / "scores.json"
    if path.exists():
        scores = json.loads(path.read_text("utf-8"))
        return {int(i): score for i, score in scores.items() if int(i) in there}
    found: dict[int, float | None] = {}
    stage = Predictions("", folder, {})
    for index in sorted(there & set(range(len(source)))):
        label, ids = source[index]["label"], stage.ids(index)
        assert ids is not None
        score = image_scores(spec.classes, label, ids, spec.ignore_label).mean_iou
        found[index] = None if score != score else score
    return found


def chosen_indices(scores: dict[int, float | None], shown: int) -> list[int]:
    """The worst and the best images, in turn; the rest, if all fit, between them.

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


def _image(
    sample: dict, index: int, stages: Sequence[Predictions], spec: DatasetSpec
) -> dict[str, Any]:
    photo = Image.fromarray(as_rgb(sample["image"]))
    factor = min(1.0, _SIDE / max(photo.size))
    size = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    predictions: dict[int, Any] = {}
    for number, stage in enumerate(stages):
        ids = stage.ids(index)
        if ids is not None:
            packed = packed_ids(ids, size)
            predictions[number] = {"ids": packed, "iou": stage.scores.get(index)}
    return {
        "index": index,
        "name": _name(sample.get("id", index)),
        "width": size[0],
        "height": size[1],
        "photo": _photo(photo.resize(size, Image.Resampling.LANCZOS)),
        "truth": packed_ids(sample["label"], size),
        "predictions": predictions,
    }


def _name(name: Any) -> str:
    """The file's name, without the folders in which it happens to lie."""
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Path(text).name


def packed_ids(labels: np.ndarray, size: tuple[int, int]) -> str:
    """(h, w) labels at (width, height), deflated, in base 64.

    Example:
        >>> text = packed_ids(np.array([[7, 0], [255, 1]]), (2, 2))
        >>> list(zlib.decompress(base64.b64decode(text)))
        [7, 0, 255, 1]
    """
    picture = Image.fromarray(labels.astype(np.uint8, copy=False))
    small = picture.resize(size, Image.Resampling.NEAREST)
    return base64.b64encode(zlib.compress(small.tobytes(), 9)).decode()


def _photo(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
