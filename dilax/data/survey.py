"""What training on your own images needs to know: mean pixel, sizes, classes."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dilax.data.classes import describe_classes, read_classes
from dilax.data.folder import read_folder
from dilax.data.image_files import Pair, check_pairs
from dilax.data.pixels import (
    Header,
    MaskValues,
    fits,
    mask_values,
    read_header,
    read_pixels,
)
from dilax.data.spec import DatasetSpec

T = TypeVar("T")
_MEASURED = 200


class Survey(NamedTuple):
    """What a folder holds.

    Attributes:
        spec: classes, palette, mean pixel, label map.
        notes: what was found and decided, a sentence each.
        sizes: (height, width) → how many images to train on have it.

    Example:
        >>> from dilax.data import DATASETS
        >>> Survey(DATASETS["camvid"], [], {(360, 480): 367}).spec.num_classes
        11
    """

    spec: DatasetSpec
    notes: list[str]
    sizes: dict[tuple[int, int], int]


class _Measured(NamedTuple):
    """What reading the files shows, whatever the classes are called."""

    headers: list[Header]
    mean: tuple[float, ...]
    masks: list[tuple[Path, MaskValues]]
    left_out: list[str]


def survey_folder(
    data_dir: str | Path,
    images: str = "",
    labels: str = "",
    classes: str = "",
    skip_unreadable: bool = False,
) -> Survey:
    """Measures what training on a folder needs to know.

    Every mask is read, and up to 200 images. A process reads them once, and again only
    if they change.

    Args:
        data_dir: see `read_folder`, as `images` and `labels`.
        images: folder or pattern of the images.
        labels: folder or pattern of the masks.
        classes: names, `"sky,tree"`, or a file with a name a line, and the colour of
            its masks behind it, `sky 70 130 180`, where masks are colour images; a
            class called void (or ignore, unlabelled) counts nowhere. "" takes the file
            `classes.txt`, or else what the masks hold.
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
    groups = tuple(tuple(splits.get(name, ())) for name in ("train", "val", "test"))
    stamps = tuple(_stamp(file) for group in groups for p in group for file in p[1:])
    found = _measure(groups, stamps, skip_unreadable)
    spec, more = describe_classes(root.name, found.mean, found.masks, given)
    sizes = Counter(header.size for header in found.headers)
    return Survey(spec, [*notes, *_about(found, sizes), *more], dict(sizes))


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@functools.lru_cache(maxsize=1)
def _measure(
    groups: tuple[tuple[Pair, ...], ...], stamps: tuple[int, ...], skip: bool
) -> _Measured:
    """Reads images and masks; files of other `stamps` are others."""
    train, val, test = groups
    pairs, left_out = check_pairs([*train, *val], skip)
    headers = {pair.image: read_header(pair.image) for pair in pairs}
    channels = _channels(headers)
    own = [pair.image for pair in train if pair.image in headers]
    if not own:
        raise ValueError(
            f"{train[0].image}: neither it nor others to train on are left"
        )
    mean = _mean_pixel(own, channels, skip)
    labelled = [*pairs, *(pair for pair in test if pair.label.exists())]
    masks = _each("classes", mask_values, [pair.label for pair in labelled], skip)
    return _Measured([headers[path] for path in own], mean, masks, left_out)


def _channels(headers: dict[Path, Header]) -> int:
    """The channels that all images can be read with."""
    counts = Counter(header.channels for header in headers.values())
    channels = 3 if 3 in counts else counts.most_common(1)[0][0]
    bits = Counter(header.bits for header in headers.values()).most_common(1)[0][0]
    for path, header in headers.items():
        if header.bits != bits or not fits(header.channels, channels):
            raise ValueError(
                f"{path}: has {header.channels} x {header.bits} bits a pixel, others "
                f"{channels} x {bits}; save all images alike"
            )
    return channels


def _mean_pixel(paths: list[Path], channels: int, skip: bool) -> tuple[float, ...]:
    """The mean pixel of some images on the 0..255 scale, channels reversed."""

    def total(path: Path) -> np.ndarray:
        """The sum of each channel, and the number of pixels."""
        pixels = read_pixels(path, channels)
        scale = 257 if pixels.dtype == np.uint16 else 1
        sums = pixels.sum((0, 1), dtype=np.float64) / scale
        return np.append(sums, pixels.size / channels)

    some = paths[:: -(-len(paths) // _MEASURED)]
    totals = [sums for _, sums in _each("mean pixel", total, some, skip)]
    *sums, count = np.sum(totals, 0)
    return tuple(round(float(value / count), 4) for value in reversed(sums))


def _each(
    title: str, read: Callable[[Path], T], paths: Sequence[Path], skip: bool
) -> list[tuple[Path, T]]:
    """(file, what is read of it), without those that cannot be read if `skip`."""

    def attempt(path: Path) -> T | ValueError:
        try:
            return read(path)
        except ValueError as error:
            return error

    found, problems = [], []
    pool = ThreadPoolExecutor(4)
    try:
        results = tqdm(
            pool.map(attempt, paths), title, len(paths), unit="image", delay=1
        )
        for path, result in zip(paths, results, strict=True):
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


def _about(found: _Measured, sizes: Counter[tuple[int, int]]) -> Iterator[str]:
    """What the images are like."""
    (height, width), most = sizes.most_common(1)[0]
    bits = found.headers[0].bits
    which = "all" if len(sizes) == 1 else f"{most} of {sizes.total()}"
    yield (
        f"channels: {len(found.mean)} of {bits} bits; {which} are {width}x{height}; "
        f"mean pixel, channels reversed: {', '.join(map(str, found.mean))}"
    )
    if found.left_out:
        yield f"{len(found.left_out)} are left out, such as {found.left_out[0]}"
