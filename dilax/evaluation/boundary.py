"""Accuracy near boundaries, which is where a CRF changes predictions.

Trimap IoU: accuracy of the pixels within r pixels of a true boundary (Kohli, Ladický,
and Torr 2009; Krähenbühl and Koltun 2011; Chen et al. 2015). Boundary F-measure: how
many boundary pixels are close to a boundary pixel of the other map (Martin, Fowlkes and
Malik 2004; for several classes, Csurka, Larlus and Perronnin 2013).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from dilax.evaluation.confusion import Scores
from dilax.runtime.processes import gathered

WIDEST = 40  # pixels


@dataclasses.dataclass(frozen=True)
class BoundaryScores:
    """Trimap IoU in bands of 1 to 40 pixels, and boundary F-measure, from counts.

    A boundary pixel has a neighbour with another label above, below, left or right of
    it. Void counts as a label here: masks such as Pascal VOC's mark boundaries with it,
    and elsewhere it is an object without a name. Band r contains the pixels that are
    less than r pixels away from a boundary pixel, in Euclidean distance: r on each
    side. Void pixels are in no band.

    For the F-measure, a boundary pixel of a class is hit if the other map has a
    boundary pixel of that class within the tolerance. A boundary that is predicted on
    void may count as a hit, but never as an error. F = 2PR / (P + R) of precision P
    and recall R is averaged over the classes with a boundary in either map, then over
    the images with such a class.

    Attributes:
        classes: class names.
        counts: (40, k, k) confusion of the pixels of each distance, 0..1, 1..2, …; rows
            are labels, columns predictions.
        f_sum: sum of the images' F-measures.
        images: number of images that have one.
        ignore_label: the label of void pixels.
        tolerance: in pixels; None is 0.75 % of each image's diagonal.

    Example:
        >>> label = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 4, 0)
        >>> scores = BoundaryScores.empty(("sky", "tree"), tolerance=1.0)
        >>> scores = scores.plus(label, np.roll(label, 1, 1) * (np.arange(8) > 0))
        >>> scores.pixel_accuracy(1), scores.pixel_accuracy(2), scores.f_measure
        (0.5, 0.75, 1.0)
    """

    classes: tuple[str, ...]
    counts: np.ndarray
    f_sum: float = 0.0
    images: int = 0
    ignore_label: int = 255
    tolerance: float | None = None

    @classmethod
    def empty(
        cls,
        classes: tuple[str, ...],
        ignore_label: int = 255,
        tolerance: float | None = None,
    ) -> "BoundaryScores":
        """Return the scores of no image.

        Raises:
            ValueError: if the tolerance is negative or not a number.
        """
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise ValueError(
                f"tolerance={tolerance}: must be a number of pixels, 0 or more, or None"
            )
        k = len(classes)
        counts = np.zeros((WIDEST, k, k), np.int64)
        return cls(classes, counts, ignore_label=ignore_label, tolerance=tolerance)

    def plus(
        self, label: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "h w"]
    ) -> "BoundaryScores":
        """Add an image: its train ids, and the predicted class ids.

        Raises:
            ValueError: if they differ in size.
        """
        if label.shape != prediction.shape:
            raise ValueError(
                f"prediction: {prediction.shape}; must have the label's size, "
                f"{label.shape}"
            )
        k, void = len(self.classes), self.ignore_label
        distance = boundary_distance(label)
        near = (distance < WIDEST) & (label != void)
        cell = distance[near].astype(np.int64) * k + label[near]
        cell = cell * k + prediction[near]
        counts = np.bincount(cell, minlength=WIDEST * k * k).reshape(WIDEST, k, k)
        f = self._f_measure_of(label, prediction)
        return dataclasses.replace(
            self,
            counts=self.counts + counts,
            f_sum=self.f_sum + (f or 0.0),
            images=self.images + (f is not None),
        )

    def _f_measure_of(self, label: np.ndarray, prediction: np.ndarray) -> float | None:
        """Return the mean F-measure of the classes with a boundary, if any has one."""
        k, radius = len(self.classes), self.tolerance
        if radius is None:
            radius = 0.0075 * math.hypot(*label.shape)
        known = label != self.ignore_label
        true = boundary_pixels(label) & known
        said = boundary_pixels(prediction)
        ours, theirs = label[true], prediction[said]
        places = np.column_stack([*np.nonzero(true), ours])
        others = np.column_stack([*np.nonzero(said), theirs])
        right = _hits(others, places, radius)
        # Boundary pixels of each class, and how many of them are hit, in either map.
        all_true, hits, all_said, rights = (
            np.bincount(classes, minlength=k)
            for classes in (
                *(ours, ours[_hits(places, others, radius)]),
                *(theirs[right | known[said]], theirs[right]),
            )
        )
        present = all_true + all_said > 0
        if not present.any():
            return None
        recall = hits / np.maximum(all_true, 1)
        precision = rights / np.maximum(all_said, 1)
        f = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        return float(f[present].mean())

    def over_processes(self) -> "BoundaryScores":
        """Return the scores of the images of all processes."""
        f, images = gathered(np.array([self.f_sum, self.images], np.float64)).sum(0)
        counts = gathered(self.counts).sum(0)
        return dataclasses.replace(
            self, counts=counts, f_sum=float(f), images=int(images)
        )

    def band(self, width: int) -> Scores:
        """Return the scores of the pixels within `width` (1 to 40) of a boundary."""
        if not 1 <= width <= WIDEST:
            raise ValueError(f"width={width}: must be 1 to {WIDEST} pixels")
        return Scores(self.classes, self.counts[:width].sum(0))

    def mean_iou(self, width: int) -> float | None:
        """Return the trimap IoU: mean IoU of a band; None if it has no pixel."""
        return _or_none(self.band(width).mean_iou)

    def pixel_accuracy(self, width: int) -> float | None:
        """Return the share of a band's pixels that are predicted correctly."""
        return _or_none(self.band(width).pixel_accuracy)

    @property
    def f_measure(self) -> float | None:
        """Mean boundary F-measure, 0..1; None if no image has one."""
        return self.f_sum / self.images if self.images else None

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as `results.json` contains them."""
        widths = range(1, WIDEST + 1)
        return {
            "trimap_iou": {str(r): self.mean_iou(r) for r in widths},
            "trimap_accuracy": {str(r): self.pixel_accuracy(r) for r in widths},
            "boundary_f": self.f_measure,
        }


def boundary_pixels(labels: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return whether the label differs above, below, left or right of a pixel."""
    found = np.zeros(labels.shape, bool)
    for a, there in ((labels, found), (labels.T, found.T)):
        differ = a[1:] != a[:-1]
        there[1:] |= differ
        there[:-1] |= differ
    return found


def boundary_distance(labels: Integer[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Return the distance to the nearest boundary pixel; infinity if there is none."""
    from scipy.ndimage import distance_transform_edt  # takes a third of a second

    found = boundary_pixels(labels)
    if not found.any():
        return np.full(labels.shape, np.inf)
    return distance_transform_edt(~found)


def _hits(
    places: Integer[np.ndarray, "n 3"],
    others: Integer[np.ndarray, "m 3"],
    radius: float,
) -> Bool[np.ndarray, " n"]:
    """Return which boundary pixels have one of their class nearby in the other map.

    Args:
        places: (row, column, class) of the boundary pixels of one map.
        others: those of the other map.
        radius: in pixels, in Euclidean distance.
    """
    from scipy.spatial import cKDTree  # takes a third of a second to import

    apart = 1, 1, math.ceil(radius) + 2  # so that other classes are never near
    tree = cKDTree(others * apart)
    distance, _ = tree.query(places * apart, distance_upper_bound=radius + 1)
    return np.rint(distance**2) <= radius**2


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
