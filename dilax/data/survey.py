"""The properties of your own images that training needs: mean pixel, sizes, classes."""

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dilax.data.class_lists import SUFFIXES, read_classes
from dilax.data.classes import describe_classes
from dilax.data.folder import read_folder
from dilax.data.masks import MaskReading, MaskValues, mask_values
from dilax.data.pairing import SPLITS, Pair, split_of_list
from dilax.data.pixels import (
    Header,
    channel_sums,
    convertible,
    read_pixels,
)
from dilax.data.source import Checked, check_pairs, shown_size
from dilax.data.spec import DatasetSpec

T = TypeVar("T")

_MEASURED = 200


class Survey(NamedTuple):
    """The contents of a folder.

    Attributes:
        spec: classes, palette, mean pixel, label map.
        notes: what was found and decided, one sentence each.
        sizes: (height, width) → the number of training images of this size.
    """

    spec: DatasetSpec
    notes: list[str]
    sizes: dict[tuple[int, int], int]


def survey_folder(
    data_dir: str | Path,
    images: str = "",
    labels: str = "",
    classes: str = "",
    skip_unreadable: bool = False,
    *,
    reading: MaskReading = MaskReading(),  # noqa: B008
    orientation: Literal["", "upright", "stored"] = "",
) -> Survey:
    """Measure the properties of a folder that training needs.

    Every mask and up to 200 images are read. A process reads them once, and again only
    after they change.

    Args:
        data_dir: see `read_folder`, also for `images` and `labels`.
        images: folder or pattern of the images.
        labels: folder or pattern of the masks.
        classes: names, `"sky,tree"`, or a file with one name per line, followed by its
            colour, `sky 70 130 180`, if masks are colour images; a class called void
            (or ignore, unlabelled) is ignored. "" reads the file `classes.txt`, or uses
            the values of the masks.
        skip_unreadable: leave out files that cannot be read.
        reading: the user's choices for masks whose meaning is in doubt.
        orientation: how to read images with an EXIF orientation whose masks fit them
            both turned upright and as stored; "" turns them, unless other masks fit
            only images as stored.

    Raises:
        ValueError: naming the file, if something cannot be read, does not fit, or is in
            doubt.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(4):
        ...         for kind, grey in (("images", 90), ("labels", i % 2)):
        ...             Path(folder, kind).mkdir(exist_ok=True)
        ...             Image.new("L", (8, 8), grey).save(f"{folder}/{kind}/{i}.png")
        ...     survey_folder(folder, classes="sky,tree").spec.classes
        ('sky', 'tree')
    """
    splits, notes = read_folder(data_dir, images, labels)
    root = Path(data_dir).expanduser().resolve()
    given = read_classes(root, classes)
    groups = tuple(tuple(splits.get(name, ())) for name in SPLITS)
    files = [file for group in groups for p in group for file in (p.image, p.label)]
    stamps = tuple(f.stat().st_mtime_ns if f.exists() else 0 for f in files)
    as_stored = orientation == "stored" if orientation else None
    reading = reading._replace(threshold=float(reading.threshold))
    read = _read(groups, stamps, skip_unreadable, as_stored, reading.threshold)
    checked, mean, masks, sizes = read
    spec, more = describe_classes(root.name, mean, masks, given, reading)
    (height, width), count = sizes.most_common(1)[0]
    share = "all" if len(sizes) == 1 else f"{count} of {sizes.total()}"
    bits = next(iter(checked.headers.values())).bits
    about = [
        f"channels: {len(mean)} of {bits} bits; {share} are "
        f"{width}x{height}; mean pixel, channels reversed: {', '.join(map(str, mean))}",
        *checked.notes,
    ]
    if left_out := checked.problems:
        about.append(f"{len(left_out)} are left out, such as {left_out[0]}")
    if not given and (lists := _possible_lists(root)):
        shown = ", ".join(os.path.relpath(path, root) for path in lists[:5])
        about.append(f"{shown} may name the classes: --classes=FILE reads one")
    spec = dataclasses.replace(spec, as_stored=bool(as_stored))
    return Survey(spec, [*notes, *about, *more], dict(sizes))


def _possible_lists(root: Path) -> list[Path]:
    """Return files that may be lists of classes by their names, in or just below a
    folder.

    Only the user knows which one is correct, because their order may differ.
    """
    files = [path for depth in ("*", "*/*") for path in sorted(root.glob(depth))]
    return [
        path
        for path in files
        if path.suffix.lower() in SUFFIXES
        and re.search("class|label|names|categories|^data$|^meta$", path.stem.lower())
        and not split_of_list(path.stem)
    ]


@functools.lru_cache(maxsize=1)
def _read(
    groups: tuple[tuple[Pair, ...], ...],
    stamps: tuple[int, ...],
    skip: bool,
    as_stored: bool | None,
    threshold: float,
) -> tuple[
    Checked, tuple[float, ...], list[tuple[Path, MaskValues]], Counter[tuple[int, int]]
]:
    """Return the checked pairs, mean pixel and sizes of training images, and all masks.

    `stamps`, when the files were modified, only tells changed files apart in the cache.
    """
    train, val, test = groups
    checked = check_pairs([*train, *val], skip, None, as_stored)
    channels = _common_channels(checked.headers)
    own = [pair for pair in train if pair in checked.headers]
    if not own:
        raise ValueError(f"{train[0].image}: no readable training images are left")

    def total(path: Path) -> np.ndarray:
        """Return the sum of each channel, and the number of pixels."""
        pixels = read_pixels(path, channels)
        return np.append(channel_sums(pixels), pixels.size / channels)

    some = [pair.image for pair in own][:: -(-len(own) // _MEASURED)]
    *sums, pixels = np.sum([t for _, t in _each("mean pixel", total, some, skip)], 0)
    mean = tuple(round(float(value / pixels), 4) for value in reversed(sums))
    labelled = [*checked.headers, *(pair for pair in test if pair.label.exists())]
    count = functools.partial(mask_values, threshold=threshold)
    masks = _each("classes", count, [pair.label for pair in labelled], skip)
    headers = ((checked.headers[pair], checked.upright[pair][0]) for pair in own)
    sizes = Counter(shown_size(h.size, h.orientation, turn) for h, turn in headers)
    return checked, mean, masks, sizes


def _common_channels(headers: dict[Pair, Header]) -> int:
    """Return the number of channels with which all images can be read."""
    counts = Counter(header.channels for header in headers.values())
    channels = 3 if 3 in counts else counts.most_common(1)[0][0]
    bits = Counter(header.bits for header in headers.values()).most_common(1)[0][0]
    for pair, header in headers.items():
        if header.bits != bits or not convertible(header.channels, channels):
            raise ValueError(
                f"{pair.image}: has {header.channels} x {header.bits} bits per pixel, "
                f"others {channels} x {bits}; save all images in one format"
            )
    return channels


def _each(
    title: str, read: Callable[[Path], T], paths: list[Path], skip: bool
) -> list[tuple[Path, T]]:
    """Yield (file, its content), without unreadable files if `skip`."""

    def attempt(path: Path) -> T | ValueError:
        try:
            return read(path)
        except ValueError as error:
            return error

    found, problems = [], []
    pool = ThreadPoolExecutor(4)
    try:
        results = pool.map(attempt, paths)
        shown = tqdm(results, title, len(paths), unit="image", delay=1)
        for path, result in zip(paths, shown, strict=True):
            if not isinstance(result, ValueError):
                found.append((path, result))
            elif skip:
                problems.append(result)
            else:
                raise result
    finally:
        pool.shutdown(cancel_futures=True)
    if problems and not found:
        raise problems[0]
    return found


class Statistics:
    """Class frequencies and the mean pixel of samples that are added one by one.

    Args:
        spec: the classes and the ignore label.
    """

    HEADERS = ("class", "% of labelled pixels", "% of images")

    def __init__(self, spec: DatasetSpec):
        self._spec = spec
        self._pixels, self._images = np.zeros((2, 256), np.int64)
        self._sums, self._samples = np.zeros(1), 0

    def add(self, sample: dict) -> None:
        """Count a sample `{image, label}`."""
        counts = np.bincount(sample["label"].ravel(), minlength=256)
        self._pixels += counts
        self._images += counts > 0
        self._sums = self._sums + channel_sums(sample["image"])
        self._samples += 1

    def rows(self) -> list[tuple[str, float, float]]:
        """(class, % of labelled pixels, % of images with it), ignored pixels last.

        The share of ignored pixels is of all pixels.
        """
        k, ignore = self._spec.num_classes, self._spec.ignore_label
        labelled, total = self._pixels[:k].sum(), self._pixels.sum()
        names = [*enumerate(self._spec.classes), (ignore, "(ignored)")]
        return [
            (
                name,
                100 * int(self._pixels[i]) / max(1, total if i == ignore else labelled),
                100 * int(self._images[i]) / max(1, self._samples),
            )
            for i, name in names
        ]

    def mean(self) -> tuple[float, ...]:
        """The mean pixel on the 0..255 scale, channels reversed: (B, G, R)."""
        mean = self._sums / max(1, self._pixels.sum())
        return tuple(round(float(v), 4) for v in mean[::-1])
