"""Any split of any data set as one kind of source: a sequence of samples.

What a split holds: how often each class occurs, and the mean pixel.
"""

from collections.abc import Sequence

import numpy as np

from dilax.data.folder import read_folder
from dilax.data.image_files import ImageLabelFiles
from dilax.data.scenes import Scenes
from dilax.data.spec import DATASETS, DatasetSpec


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


def open_source(
    dataset: str,
    spec: DatasetSpec,
    data_dir: str,
    split: str,
    *,
    variant: str = "",
    images: str = "",
    labels: str = "",
    seed: int = 0,
    skip_unreadable: bool = False,
) -> Sequence[dict]:
    """Opens a split of a data set as a sequence of `{image, label, id}`.

    Args:
        dataset: `"scenes"`, `"folder"` (your own), or a prepared data set.
        spec: the data set's facts.
        data_dir: the folder of the files, or of all prepared sets.
        split: `"train"`, `"val"`, ….
        variant: of a prepared set; "" is its first.
        images: of a folder; see `read_folder`.
        labels: of a folder; see `read_folder`.
        seed: of the rendered scenes.
        skip_unreadable: of a folder; see `ImageLabelFiles`.

    Returns:
        A random-access source.

    Raises:
        ValueError: if the data set is unknown or not there, or its files are missing,
            empty or wrong.

    Example:
        >>> from dilax.data import DATASETS
        >>> len(open_source("scenes", DATASETS["scenes"], "", "val"))
        100
    """
    if dataset == "scenes":
        return Scenes(split, seed=seed)
    if dataset != "folder":
        if dataset not in DATASETS:
            known = ", ".join(["folder", *DATASETS])
            raise ValueError(f"--config.data.dataset={dataset!r}: is none of {known}")
        # Here, because it takes tfds more than a second to import itself.
        from dilax.data.prepared import open_prepared

        return open_prepared(dataset, spec, data_dir, split, variant)
    splits = read_folder(data_dir, images, labels).splits
    if split not in splits:
        raise ValueError(f"{data_dir}: has no split {split!r}; there are {[*splits]}")
    return ImageLabelFiles(splits[split], spec, skip_unreadable)


def evenly_spread(count: int, n: int) -> list[int]:
    """Up to n of `count` indices, evenly spread.

    Example:
        >>> evenly_spread(10, 4), evenly_spread(2, 4)
        ([0, 2, 5, 7], [0, 1])
    """
    n = min(n, count)
    return [i * count // n for i in range(n)]


class Joined(Sequence):
    """Two sources, one after the other, as one.

    Example:
        >>> from dilax.data import Scenes
        >>> len(Joined(Scenes("train", count=3), Scenes("val", count=2)))
        5
    """

    def __init__(self, first: Sequence[dict], second: Sequence[dict]):
        self._parts = first, second

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        index = range(len(self))[index]
        first, second = self._parts
        return first[index] if index < len(first) else second[index - len(first)]


class Chosen(Sequence):
    """Some samples of a source, by index, as a source.

    Example:
        >>> from dilax.data import Scenes
        >>> [s["id"] for s in Chosen(Scenes("val", count=5, size=64), [4, 0])]
        ['val_00004', 'val_00000']
    """

    def __init__(self, source: Sequence[dict], indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        return self._source[self._indices[index]]
