"""Images and labels on disk as a random-access source.

A source is a sequence of `{"image": (h, w, c), "label": (h, w) uint8, "id"}`; images
are RGB and uint8 unless the data set says otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import tifffile
from absl import logging
from PIL import Image, ImageOps

from dilax.datasets.spec import DatasetSpec, ids_of_colours

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
T = TypeVar("T")
_INDEX = ("P", "L", "1", "I", "I;16", "I;16B")
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_SKIP = "--config.data.skip_unreadable=True trains without such files"


class Pair(NamedTuple):
    """An image file and its label file."""

    id: str
    image: Path
    label: Path


class ImageLabelFiles(Sequence):
    """A source that reads pairs of files, and names the file when one is not right.

    Headers are read at once: that both files exist, are images, and agree in size.
    Pixels are read on access. An image whose pixels turn out to be unreadable raises,
    or, with `skip_unreadable`, is named once in the log and given with a label of
    nothing but `ignore_label`, so that it counts neither in training nor in evaluation.
    Label ids that are no class always raise: more often the class list is wrong.

    Args:
        pairs: the files.
        spec: says which label ids are valid and how they map to train ids.
        skip_unreadable: leave out what cannot be read instead of stopping.

    Raises:
        ValueError: naming up to ten files, if a header is wrong and they are not
            skipped, or if nothing is left.
    """

    def __init__(
        self, pairs: Sequence[Pair], spec: DatasetSpec, skip_unreadable: bool = False
    ):
        self._spec = spec
        self._table = spec.label_table()
        self._skip = skip_unreadable
        self._named: set[str] = set()
        problems = {pair: _header_problem(pair) for pair in pairs}
        bad = [problem for problem in problems.values() if problem]
        if bad and not skip_unreadable:
            raise ValueError(_listing(bad))
        for problem in bad:
            logging.warning("Left out: %s", problem)
        self._pairs = [pair for pair, problem in problems.items() if not problem]
        if not self._pairs:
            raise ValueError(f"none of {len(pairs)} images is readable")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        pair = self._pairs[index]
        channels = len(self._spec.mean)
        try:
            image = read_pixels(pair.image, channels)
            ids = read_mask(pair.label)
        except ValueError as error:
            if not self._skip:
                raise ValueError(f"{error}; {_SKIP}") from error
            if pair.id not in self._named:
                self._named.add(pair.id)
                logging.warning("Left out: %s", error)
            with Image.open(pair.image) as file:
                width, height = file.size
            image = np.zeros((height, width, channels), np.uint8)
            ids = np.full((height, width), self._spec.ignore_label, np.uint8)
        label = self._train_ids(ids, pair.label)
        return {"image": image, "label": label, "id": pair.id}

    def _train_ids(self, ids: np.ndarray, path: Path) -> np.ndarray:
        if ids.ndim == 3:
            colours = {c: i for i, c in enumerate(self._spec.palette)}
            colours |= dict.fromkeys(self._spec.void_colours, self._spec.ignore_label)
            return ids_of_colours(ids, colours, str(path))
        label = self._table[ids]
        if (label < 0).any():
            wrong = np.unique(ids[label < 0]).tolist()
            raise ValueError(
                f"{path}: label ids {wrong} are not among the "
                f"{self._spec.num_classes} classes of {self._spec.name} and not "
                f"{self._spec.ignore_label} (ignored)"
            )
        return label.astype(np.uint8)


def read_image(path: Path, upright: bool = False) -> np.ndarray:
    """Reads an image as (h, w, 3) uint8 RGB.

    Args:
        path: a file that Pillow reads; grey and transparent ones become RGB.
        upright: turn the image as its EXIF orientation says, as viewers do.

    Raises:
        ValueError: naming the file, if it is not an image, is truncated, or holds more
            than 8 bits a channel.
    """

    def convert(file: Image.Image) -> np.ndarray:
        if file.mode[0] in "IF":
            raise ValueError(f"mode {file.mode} has more than 8 bits a channel")
        turned = ImageOps.exif_transpose(file) if upright else file
        return np.asarray(turned.convert("RGB"))

    return _decode(path, convert)


def read_pixels(path: Path, channels: int | None = None) -> np.ndarray:
    """Reads an image as (h, w, c), uint8 or uint16, with the channels that it has.

    TIFF keeps all its channels and bits. Of other formats transparency is left out, and
    colour images of 16 bits come with their upper 8.

    Args:
        path: the file.
        channels: how many are wanted; 3 makes RGB of grey and palette images.

    Raises:
        ValueError: naming the file, if it is not an image or has other channels.
    """
    tiff = path.suffix.lower() in (".tif", ".tiff")
    pixels = _read_tiff(path) if tiff else _decode(path, _native)
    if channels in (None, pixels.shape[2]):
        return pixels
    if channels == 3:
        return read_image(path)
    raise ValueError(
        f"{path}: has {pixels.shape[2]} channels where the others have {channels}"
    )


def _native(file: Image.Image) -> np.ndarray:
    if file.mode in ("L", "LA", "1"):
        return np.asarray(file.convert("L"))[..., None]
    if file.mode.startswith("I;16"):
        return np.asarray(file).astype(np.uint16)[..., None]
    if file.mode[0] in "IF":
        raise ValueError(f"mode {file.mode} is neither 8 nor 16 bits a channel")
    return np.asarray(file.convert("RGB"))


def _read_tiff(path: Path) -> np.ndarray:
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            pixels, axes = series.asarray(), series.axes
    except (OSError, ValueError, IndexError, KeyError, tifffile.TiffFileError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
    if pixels.ndim == 2:
        pixels, axes = pixels[..., None], "YXS"
    if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{path}: is {axes} {pixels.shape} {pixels.dtype}, not an image of 8 or 16 "
            "bits a channel"
        )
    return pixels if axes.startswith("YX") else np.moveaxis(pixels, 0, -1)


def mask_mode(path: Path) -> Literal["index", "colour"]:
    """Whether a mask holds class ids or colours.

    Raises:
        ValueError: naming the file, if it is not an image.
    """
    mode = _decode(path, lambda file: file.mode)
    return "index" if mode in _INDEX else "colour"


def read_mask(path: Path) -> np.ndarray:
    """(h, w) uint8 ids, or (h, w, 3) uint8 colours.

    Raises:
        ValueError: naming the file, if it is not an image or has ids above 255.
    """

    def convert(file: Image.Image) -> np.ndarray:
        if file.mode not in _INDEX:
            return np.asarray(file.convert("RGB"))
        ids = np.asarray(file)
        if ids.min() < 0 or ids.max() > 255:
            raise ValueError(f"label ids reach from {ids.min()} to {ids.max()}")
        return ids.astype(np.uint8)

    return _decode(path, convert)


def _decode(path: Path, convert: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(path) as file:
            return convert(file)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def _header_problem(pair: Pair) -> str | None:
    sizes = []
    for path in (pair.image, pair.label):
        if not path.exists():
            return f"{path}: missing (its pair is {pair.image.name}, {pair.label.name})"
        try:
            with Image.open(path) as file:
                sizes.append(file.size)
        except _UNREADABLE as error:
            return f"{path}: not an image ({error})"
    if sizes[0] != sizes[1]:
        return "{}: image is {}x{}, its label {}x{}".format(
            pair.image, *sizes[0], *sizes[1]
        )
    return None


def _listing(problems: list[str]) -> str:
    more = f"\n… and {len(problems) - 10} more" if len(problems) > 10 else ""
    return (
        f"{len(problems)} unreadable:\n" + "\n".join(problems[:10]) + f"{more}\n{_SKIP}"
    )


def list_images(path: Path) -> Iterator[Path]:
    """The image files of a folder in order of name, or the file itself.

    Raises:
        ValueError: if the path is missing or a folder without images.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return iter([path] if path.is_file() else _images(path))


def _images(folder: Path) -> list[Path]:
    paths = sorted(
        p for p in existing(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES
    )
    if not paths:
        raise ValueError(
            f"{folder}: holds no images (suffixes: {' '.join(IMAGE_SUFFIXES)})"
        )
    return paths


def existing(folder: Path) -> Path:
    """The folder, if it is one.

    Raises:
        ValueError: if it is not there.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give it with --data_dir")
    return folder


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped.

    Raises:
        ValueError: naming the file, if it cannot be read or has none.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path}: is empty")
    return lines
