"""The properties of your own images that training needs: mean pixel, sizes, classes."""

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dilax.data.classes import Masks, describe_classes
from dilax.data.folder import read_folder
from dilax.data.lists import CLASS_SUFFIXES, read_classes
from dilax.data.masks import MaskReading, mask_values
from dilax.data.pairing import SPLITS, Pair, split_of_list
from dilax.data.pixels import channel_sums, convertible, read_pixels
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
    mean, masks, sizes, about = _measured(
        groups, stamps, skip_unreadable, as_stored, reading.threshold
    )
    if not given and (lists := _possible_lists(root)):
        shown = ", ".join(os.path.relpath(path, root) for path in lists[:5])
        about = [*about, f"{shown} may name the classes: --classes=FILE reads one"]
    spec, more = describe_classes(root.name, mean, masks, given, reading)
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
        if path.suffix.lower() in CLASS_SUFFIXES
        and re.search("class|label|names|categories|^data$|^meta$", path.stem.lower())
        and not split_of_list(path.stem)
    ]


@functools.lru_cache(maxsize=1)
def _measured(
    groups: tuple[tuple[Pair, ...], ...],
    stamps: tuple[int, ...],
    skip: bool,
    as_stored: bool | None,
    threshold: float,
) -> tuple[tuple[float, ...], Masks, Counter[tuple[int, int]], list[str]]:
    """Return the mean pixel, all masks, the sizes of training images, and notes.

    `stamps`, when the files were modified, only tells changed files apart in the cache.
    """
    train, val, test = groups
    checked, problems, notes = check_pairs([*train, *val], skip, None, as_stored)
    headers = [files.image for files in checked]
    counts = Counter(header.channels for header in headers)
    channels = 3 if 3 in counts else counts.most_common(1)[0][0]
    bits = Counter(header.bits for header in headers).most_common(1)[0][0]
    for files in checked:
        if files.image.bits != bits or not convertible(files.image.channels, channels):
            raise ValueError(
                f"{files.pair.image}: has {files.image.channels} x {files.image.bits} "
                f"bits per pixel, others {channels} x {bits}; save all images in one "
                "format"
            )
    known = {*train}
    own = [files for files in checked if files.pair in known]
    if not own:
        raise ValueError(f"{train[0].image}: no readable training images are left")

    def total(path: Path) -> np.ndarray:
        """Return the sum of each channel, and the number of pixels."""
        pixels = read_pixels(path, channels)
        return np.append(channel_sums(pixels), pixels.size / channels)

    some = [files.pair.image for files in own][:: -(-len(own) // _MEASURED)]
    *sums, pixels = np.sum([t for _, t in _each("mean pixel", total, some, skip)], 0)
    mean = tuple(round(float(value / pixels), 4) for value in reversed(sums))
    labels = [files.pair.label for files in checked]
    labels += [pair.label for pair in test if pair.label.exists()]
    count = functools.partial(mask_values, threshold=threshold)
    masks = _each("classes", count, labels, skip)
    sizes = Counter(files.size for files in own)
    (height, width), most = sizes.most_common(1)[0]
    share = "all" if len(sizes) == 1 else f"{most} of {sizes.total()}"
    shown = ", ".join(map(str, mean))
    notes = [
        f"channels: {len(mean)} of {bits} bits; {share} are {width}x{height}; mean "
        f"pixel, channels reversed: {shown}",
        *notes,
    ]
    if problems:
        notes.append(f"{len(problems)} are left out, such as {problems[0]}")
    return mean, masks, sizes, notes


def _each(
    title: str, read: Callable[[Path], T], paths: list[Path], skip: bool
) -> list[tuple[Path, T]]:
    """Return (file, its content), without unreadable files if `skip`."""
    found, problems = [], []
    pool = ThreadPoolExecutor(4)
    try:
        futures = [pool.submit(read, path) for path in paths]
        shown = tqdm(futures, title, unit="image", delay=1)
        for path, future in zip(paths, shown, strict=True):
            try:
                found.append((path, future.result()))
            except ValueError as error:
                if not skip:
                    raise
                problems.append(error)
    finally:
        pool.shutdown(cancel_futures=True)
    if problems and not found:
        raise problems[0]
    return found


def class_statistics(
    samples: Iterable[dict], spec: DatasetSpec
) -> tuple[list[tuple[str, float, float]], tuple[float, ...]]:
    """Count the classes and the mean pixel of samples.

    Args:
        samples: `{image, label}` samples.
        spec: the classes and the ignore label.

    Returns:
        (class, % of labelled pixels, % of images with it), ignored pixels last, whose
        share is of all pixels; and the mean pixel on the 0..255 scale, channels
        reversed: (B, G, R).
    """
    pixels, images = np.zeros((2, 256), np.int64)
    sums, count = np.zeros(1), 0
    for sample in samples:
        count += 1
        found = np.bincount(sample["label"].ravel(), minlength=256)
        pixels, images = pixels + found, images + (found > 0)
        sums = sums + channel_sums(sample["image"])
    total, labelled = pixels.sum(), pixels[: spec.num_classes].sum()
    parts = [(name, i, labelled) for i, name in enumerate(spec.classes)]
    parts.append(("(ignored)", spec.ignore_label, total))
    rows = [
        (
            name,
            100 * int(pixels[i]) / max(1, whole),
            100 * int(images[i]) / max(1, count),
        )
        for name, i, whole in parts
    ]
    return rows, tuple(round(float(v / max(1, total)), 4) for v in sums[::-1])
