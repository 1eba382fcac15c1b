"""What a split holds: how often each class occurs, and the mean pixel."""

import numpy as np

from dilax.datasets.spec import DatasetSpec


class Statistics:
    """Counts of samples that are added one by one.

    Args:
        spec: the classes and the ignore label.
    """

    HEADERS = ("class", "% of labelled pixels", "% of images")

    def __init__(self, spec: DatasetSpec):
        self._spec = spec
        self._pixels = np.zeros(256, np.int64)
        self._images = np.zeros(256, np.int64)
        self._sum, self._count, self._samples = 0.0, 0, 0

    def add(self, sample: dict) -> None:
        """Counts a sample `{image, label}`."""
        counts = np.bincount(sample["label"].ravel(), minlength=256)
        self._pixels += counts
        self._images += counts > 0
        image = sample["image"]
        scale = 257 if image.dtype == np.uint16 else 1
        self._sum = self._sum + image.sum((0, 1), dtype=np.float64) / scale
        self._count += image.shape[0] * image.shape[1]
        self._samples += 1

    def rows(self) -> list[tuple[str, float, float]]:
        """(class, % of labelled pixels, % of images that hold it), ignored pixels last.

        The share of ignored pixels is of all pixels.
        """
        k, ignore = self._spec.num_classes, self._spec.ignore_label
        labelled = max(1, int(self._pixels[:k].sum()))
        images = 100 * self._images / max(1, self._samples)
        rows = [
            (name, 100 * int(self._pixels[i]) / labelled, float(images[i]))
            for i, name in enumerate(self._spec.classes)
        ]
        ignored = 100 * int(self._pixels[ignore]) / max(1, int(self._pixels.sum()))
        return [*rows, ("(ignored)", ignored, float(images[ignore]))]

    def mean(self) -> tuple[float, ...]:
        """The mean pixel on the 0..255 scale, channels reversed: (B, G, R)."""
        mean = np.atleast_1d(self._sum / max(1, self._count))
        return tuple(round(float(v), 4) for v in mean[::-1])
