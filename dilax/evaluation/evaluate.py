"""Accuracy of a network on a source at full image resolution, and tables of it.

The tables show the stages of a run side by side, as Table 3 of the paper does.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from dilax.data import Chosen, DatasetSpec, in_order
from dilax.evaluation.boundary import BoundaryScores
from dilax.evaluation.confusion import Scores, image_scores, mean_of_known
from dilax.runtime.files import printable
from dilax.runtime.processes import is_writer, own_share


@runtime_checkable
class ImagePredictor(Protocol):
    """What `evaluate` needs from a predictor, such as `Predictor`.

    Attributes:
        spec: the data set: classes and ignore label.
        batch_size: number of images that are predicted at a time.
    """

    spec: DatasetSpec
    batch_size: int

    def stream(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield label maps (h, w) of images (h, w, c), in their order."""
        ...


def evaluate(
    predictor: ImagePredictor,
    source: Sequence[dict],
    title: str = "evaluate",
    on_prediction: Callable[[int, dict, np.ndarray], None] | None = None,
    boundaries: bool = False,
) -> Scores:
    """Predict every image by the released protocol, and count its pixels.

    Args:
        predictor: network, parameters and data set.
        source: `{image, label, id}` samples.
        title: of the progress bar; "" shows none.
        on_prediction: called with each image's index, sample and (h, w) prediction.
        boundaries: also measure trimap IoU and boundary F (`BoundaryScores`).

    Returns:
        The `Scores` over all pixels of all images that are not ignored. Several
        processes share the images, and each returns the scores of all.

    Example:
        >>> from dilax.data import DATASETS, Scenes
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, init_params
        >>> from dilax.inference import Predictor
        >>> spec = DATASETS["scenes"]
        >>> model = DilatedNet(FrontEnd(8, (Layer("a", 3, 4),)))
        >>> predictor = Predictor(model, init_params(model, seed=0), spec)
        >>> scores = evaluate(predictor, Scenes("val", count=2, size=64), title="")
        >>> scores.confusion.shape, 0 <= scores.mean_iou < 0.3
        ((8, 8), True)
    """
    spec = predictor.spec
    own = own_share(range(len(source)))
    confusion = np.zeros((spec.num_classes, spec.num_classes), np.int64)
    near = BoundaryScores.empty(spec.classes, spec.ignore_label)
    index = iter(own)
    silent = not title or not is_writer()
    with tqdm(total=len(own), desc=title, unit="image", disable=silent) as bar:
        for samples in in_order(Chosen(source, own), predictor.batch_size):
            predictions = predictor.stream([s["image"] for s in samples])
            for sample, prediction in zip(samples, predictions, strict=True):
                pair = sample["label"], prediction
                found = image_scores(spec.classes, *pair, spec.ignore_label)
                confusion += found.confusion
                if boundaries:
                    near = near.plus(*pair)
                if on_prediction:
                    on_prediction(next(index), sample, prediction)
                bar.update()
    scores = Scores(spec.classes, confusion, spec.categories).over_processes()
    if not boundaries:
        return scores
    return dataclasses.replace(scores, boundaries=near.over_processes().as_dict())


_SUMMARY = (
    ("**mean IoU**", "mean_iou"),
    ("pixel accuracy", "pixel_accuracy"),
    ("mean accuracy", "mean_accuracy"),
)


def stage_table(stages: Mapping[str, Mapping], marked: Sequence[str] = ()) -> str:
    """IoU of every stage per class and per category, and the means, in per cent.

    Args:
        stages: stage name → the result of `Scores.as_dict`.
        marked: classes to mark and average separately: those that only context
            distinguishes.

    Returns:
        The table, with a dash where there is no IoU. Stages without categories show
        none.

    Example:
        >>> means = {"mean_iou": 0.7, "pixel_accuracy": 0.8, "mean_accuracy": 0.75}
        >>> scores = {"iou_per_class": {"sky": 0.9, "sea": 0.5}, **means}
        >>> print(stage_table({"front_end": scores}))
        | IoU, %         |   front end |
        |----------------|-------------|
        | sky            |        90.0 |
        | sea            |        50.0 |
        | **mean IoU**   |        70.0 |
        | pixel accuracy |        80.0 |
        | mean accuracy  |        75.0 |
    """
    columns = [*stages.values()]

    def row(title: str, values: Iterable[float | None]) -> list[str]:
        return [title, *map(percent, values)]

    rows = [
        row(name + " *" * (name in marked), [s["iou_per_class"][name] for s in columns])
        for name in columns[0]["iou_per_class"]
    ]
    if marked:
        ious = [[s["iou_per_class"][name] for name in marked] for s in columns]
        rows.append(row("mean of *", map(mean_of_known, ious)))
    groups = [s.get("iou_per_category", {}) for s in columns]
    categories = dict.fromkeys(name for group in groups for name in group)
    rows += [row(f"category {n}", [g.get(n) for g in groups]) for n in categories]
    if categories:
        means = [s.get("mean_category_iou") for s in columns]
        rows.append(row("mean of categories", means))
    for title, key in _SUMMARY:
        rows.append(row(title, [s[key] for s in columns]))
    table = figure_table("IoU, %", _titles(stages), rows)
    return table + ("\n\\* only the surroundings tell these apart" if marked else "")


def boundary_table(
    stages: Mapping[str, Mapping], widths: Sequence[int] = (1, 2, 4, 8, 16, 40)
) -> str:
    """Trimap IoU of every stage in some bands, and boundary F, in per cent.

    Args:
        stages: stage name → the result of `Scores.as_dict`, for scores that `evaluate`
            measured with `boundaries`; a stage without them shows dashes.
        widths: of the bands, in pixels to either side of a boundary.

    Example:
        >>> scores = {"trimap_iou": {"1": 0.5, "4": 0.75}, "boundary_f": 0.625}
        >>> print(boundary_table({"front_end": scores}, widths=(1, 4)))
        | boundaries, %        |   front end |
        |----------------------|-------------|
        | mean IoU within 1 px |        50.0 |
        | mean IoU within 4 px |        75.0 |
        | boundary F           |        62.5 |
    """
    columns = stages.values()
    rows: list[list] = [
        [
            f"mean IoU within {r} px",
            *(percent(s.get("trimap_iou", {}).get(str(r))) for s in columns),
        ]
        for r in widths
    ]
    rows.append(["boundary F", *(percent(s.get("boundary_f")) for s in columns)])
    return figure_table("boundaries, %", _titles(stages), rows)


def figure_table(
    head: str, titles: Iterable[str], rows: Sequence[Sequence[str]]
) -> str:
    """Return a table of texts: names under `head`, figures under `titles`."""
    titles = [*titles]
    lines = []
    for name, *figures in rows:  # class names may contain any characters
        name = printable(name).replace("<", "&lt;").replace("|", "\\|")
        lines.append([name, *figures])
    return tabulate(
        lines,
        headers=[head, *titles],
        tablefmt="github",
        colalign=("left", *("right" for _ in titles)),
        disable_numparse=True,
    )


def _titles(stages: Mapping[str, Mapping]) -> list[str]:
    return [name.replace("_", " ") for name in stages]


def percent(value: float | None) -> str:
    """Format a fraction in percent with one decimal; a dash if it is missing.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.3', '–')
    """
    return "–" if value is None or value != value else f"{100 * value:.1f}"
