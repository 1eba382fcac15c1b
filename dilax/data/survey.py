"""What training on your own images needs to know: mean pixel, sizes, classes."""

import functools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dilax.data.classes import describe_classes, read_classes
from dilax.data.folder import read_folder
from dilax.data.pairing import SPLITS, Pair
from dilax.data.pixels import (
    Header,
    MaskValues,
    channel_sums,
    convertible,
    mask_values,
    read_header,
    read_pixels,
)
from dilax.data.source import check_pairs
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
) -> Survey:
    """Measures what training on a folder needs to know.

    Reads every mask, and up to 200 images. A process reads them once, and again only
    after they change.

    Args:
        data_dir: see `read_folder`, also for `images` and `labels`.
        images: folder or pattern of the images.
        labels: folder or pattern of the masks.
        classes: names, `"sky,tree"`, or a file with one name per line, followed by the
            colour of its masks, `sky 70 130 180`, where masks are colour images; a
            class called void (or ignore, unlabelled) is ignored. "" reads the file
            `classes.txt`, or else takes the values of the masks.
        skip_unreadable: leave out files that cannot be read.

    Raises:
        ValueError: naming the file, if something cannot be read or does not fit.

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
    headers, mean, masks, left_out = _read(groups, stamps, skip_unreadable)
    spec, more = describe_classes(root.name, mean, masks, given)
    sizes = Counter(header.size for header in headers)
    (height, width), count = sizes.most_common(1)[0]
    share = "all" if len(sizes) == 1 else f"{count} of {sizes.total()}"
    about = [
        f"channels: {len(mean)} of {headers[0].bits} bits; {share} are "
        f"{width}x{height}; mean pixel, channels reversed: {', '.join(map(str, mean))}"
    ]
    if left_out:
        about.append(f"{len(left_out)} are left out, such as {left_out[0]}")
    return Survey(spec, [*notes, *about, *more], dict(sizes))


@functools.lru_cache(maxsize=1)
def _read(
    groups: tuple[tuple[Pair, ...], ...], stamps: tuple[int, ...], skip: bool
) -> tuple[list[Header], tuple[float, ...], list[tuple[Path, MaskValues]], list[str]]:
    """Headers and mean pixel of the training images, all masks, what is left out.

    `stamps`, when the files were modified, only tells changed files apart in the cache.
    """
    train, val, test = groups
    pairs, left_out = check_pairs([*train, *val], skip)
    headers = {pair.image: read_header(pair.image) for pair in pairs}
    channels = _common_channels(headers)
    own = [pair.image for pair in train if pair.image in headers]
    if not own:
        raise ValueError(f"{train[0].image}: no readable training images are left")

    def total(path: Path) -> np.ndarray:
        """The sum of each channel, and the number of pixels."""
        pixels = read_pixels(path, channels)
        return np.append(channel_sums(pixels), pixels.size / channels)

    some = own[:: -(-len(own) // _MEASURED)]
    *sums, pixels = np.sum([t for _, t in _each("mean pixel", total, some, skip)], 0)
    mean = tuple(round(float(value / pixels), 4) for value in reversed(sums))
    labelled = [*pairs, *(pair for pair in test if pair.label.exists())]
    masks = _each("classes", mask_values, [pair.label for pair in labelled], skip)
    return [headers[path] for path in own], mean, masks, left_out


def _common_channels(headers: dict[Path, Header]) -> int:
    """The number of channels that all images can be read with."""
    counts = Counter(header.channels for header in headers.values())
    channels = 3 if 3 in counts else counts.most_common(1)[0][0]
    bits = Counter(header.bits for header in headers.values()).most_common(1)[0][0]
    for path, header in headers.items():
        if header.bits != bits or not convertible(header.channels, channels):
            raise ValueError(
                f"{path}: has {header.channels} x {header.bits} bits per pixel, others "
                f"{channels} x {bits}; save all images in one format"
            )
    return channels


def _each(
    title: str, read: Callable[[Path], T], paths: list[Path], skip: bool
) -> list[tuple[Path, T]]:
    """(file, what is read from it), without unreadable ones if `skip`."""

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
        """Counts a sample `{image, label}`."""
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
