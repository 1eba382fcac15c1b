"""Confusion matrices as exact integer counts, and the scores computed from them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from dilax.runtime.processes import gathered


def image_scores(
    classes: tuple[str, ...],
    label: Integer[np.ndarray, "h w"],
    prediction: Integer[np.ndarray, "h w"],
    ignore_label: int = 255,
) -> "Scores":
    """Return the scores of a single image, counted on the host.

    Raises:
        ValueError: if a label is not one of the classes.

    Example:
        >>> label = np.array([[0, 0], [1, 255]])
        >>> image_scores(("sea", "sky"), label, np.array([[0, 1], [1, 0]])).mean_iou
        0.5
    """
    k, valid = len(classes), label != ignore_label
    pairs = label[valid].astype(np.int64) * k + prediction[valid]
    counts = np.bincount(pairs, minlength=k * k)
    if len(counts) > k * k:
        raise ValueError(f"label {label[valid].max()}: there are {k} classes, from 0")
    return Scores(classes, counts.reshape(k, k))


@dataclasses.dataclass(frozen=True)
class Scores:
    """Accuracy as the paper measures it (§4; Everingham et al. 2010), from counts.

    A class that is neither labelled nor predicted anywhere has no IoU: it is None, and
    is left out of the mean. A class that is predicted but never labelled has IoU 0. The
    same holds for categories, whose classes count as one: confusion within a category
    counts as correct (cityscapesScripts, `getIouScoreForCategory`).

    Attributes:
        classes: class names.
        confusion: (k, k) Python-int counts; rows are labels, columns predictions.
        categories: (name, classes) groups that are also measured; may be empty.
        boundaries: the result of `BoundaryScores.as_dict`, if it was measured.

    Example:
        >>> counts = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 4]])
        >>> groups = (("vehicle", ("car", "bus")), ("sky", ("sky",)))
        >>> scores = Scores(("car", "bus", "sky"), counts, groups)
        >>> scores.iou_per_class
        {'car': 0.333..., 'bus': 0.0, 'sky': 0.8}
        >>> scores.iou_per_category
        {'vehicle': 0.75, 'sky': 0.8}
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    boundaries: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def over_processes(self) -> "Scores":
        """Return the exact counts of all processes together."""
        counts = gathered(self.confusion.astype(np.int64)).astype(object).sum(0)
        return dataclasses.replace(self, confusion=counts)

    @property
    def iou_per_class(self) -> dict[str, float | None]:
        """Intersection over union of each class, 0..1, or None."""
        return {name: self._iou([i]) for i, name in enumerate(self.classes)}

    @property
    def mean_iou(self) -> float:
        """Mean of the IoUs of the classes that have one."""
        return mean_of_known(self.iou_per_class.values())

    @property
    def iou_per_category(self) -> dict[str, float | None]:
        """Intersection over union of each category's classes as one, 0..1, or None."""
        return {
            name: self._iou([self.classes.index(c) for c in members])
            for name, members in self.categories
        }

    @property
    def mean_category_iou(self) -> float:
        """Mean of the IoUs of the categories that have one."""
        return mean_of_known(self.iou_per_category.values())

    def _iou(self, members: Sequence[int]) -> float | None:
        """Return the IoU of several classes taken as one."""
        labelled, predicted = self.confusion[members], self.confusion[:, members]
        hit = labelled[:, members].sum()
        union = labelled.sum() + predicted.sum() - hit
        return int(hit) / int(union) if union else None

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted correctly."""
        total = int(self.confusion.sum())
        return int(np.trace(self.confusion)) / total if total else float("nan")

    @property
    def mean_accuracy(self) -> float:
        """Mean over the labelled classes of the share that is predicted correctly."""
        rows = zip(np.diag(self.confusion), self.confusion.sum(1), strict=True)
        return mean_of_known(int(h) / int(n) if n else None for h, n in rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as `results.json` contains them."""
        by_category = {
            "mean_category_iou": self.mean_category_iou,
            "iou_per_category": self.iou_per_category,
        }
        return {
            "mean_iou": self.mean_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "iou_per_class": self.iou_per_class,
            **(by_category if self.categories else {}),
            **self.boundaries,
            "confusion": [[int(n) for n in row] for row in self.confusion],
        }


def mean_of_known(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None; NaN if there are none."""
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else float("nan")
