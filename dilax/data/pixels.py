"""Image files as arrays: images of any channels, masks of class ids or of colours.

Source: the formats are those of Pillow, and TIFF as tifffile reads it.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dilax.data.spec import RGB

_MAX_COLOURS = 256
_PER_LEVEL = 257  # 65535 / 255: 16-bit values per 8-bit value


class _UnsuitableError(ValueError):
    """A file is an image, but not of the required kind."""


class Header(NamedTuple):
    """What an image file contains.

    Attributes:
        size: (height, width) in pixels.
        channels: as `read_pixels` returns them.
        bits: of each channel, 8 or 16.
    """

    size: tuple[int, int]
    channels: int
    bits: int


class MaskValues(NamedTuple):
    """What a mask contains, and how many pixels of each.

    Attributes:
        ids: pixels of each class id; None if the mask can only hold colours.
        colours: pixels of each colour; None if the mask can only hold ids.
        palette: the colours of the ids in a palette image, {} in others.
    """

    ids: dict[int, int] | None
    colours: dict[RGB, int] | None
    palette: dict[int, RGB]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever a file makes its decoder raise into a `ValueError` that names it.

    Broken files make Pillow and tifffile raise all kinds of errors while they parse.
    """
    try:
        yield
    except _UnsuitableError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def read_header(path: Path) -> Header:
    """Reads the header of an image file, and no pixels.

    Raises:
        ValueError: naming the file, if it is not an image of 8 or 16 bits per channel.
    """
    with _naming(path):
        if not _is_tiff(path):
            with Image.open(path) as file:
                channels, bits = {"L": (1, 8), "I;16": (1, 16)}.get(_mode(file), (3, 8))
                return Header((file.height, file.width), channels, bits)
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            axis = _channel_axis(series)
            size = [n for i, n in enumerate(series.shape) if i != axis]
            channels = 1 if axis is None else series.shape[axis]
            return Header((size[0], size[1]), channels, 8 * series.dtype.itemsize)


def read_pixels(
    path: Path, channels: int | None = None, upright: bool = False
) -> np.ndarray:
    """Reads an image as (h, w, c), uint8 or uint16, with the channels that it has.

    TIFF keeps all its channels and bits. In other formats transparency is dropped, and
    16-bit colour images keep their upper 8 bits.

    Args:
        path: the file.
        channels: number to return; 3 makes RGB of grey and transparent images.
        upright: rotate the image by its EXIF orientation, as viewers do; not TIFF.

    Raises:
        ValueError: naming the file, if it is not an image or has other channels.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (4, 3), 9).save(f"{folder}/grey.png")
        ...     read_pixels(Path(folder, "grey.png")).shape
        (3, 4, 1)
    """
    with _naming(path):
        if _is_tiff(path):
            pixels = _tiff_pixels(path)
        else:
            with Image.open(path) as file:
                mode = _mode(file)
                turned = ImageOps.exif_transpose(file) if upright else file
                if mode == "I;16":
                    pixels = np.asarray(turned).astype(np.uint16)[..., None]
                else:
                    pixels = np.atleast_3d(np.asarray(turned.convert(mode)))
    found = pixels.shape[2]
    if channels in (None, found):
        return pixels
    if not convertible(found, channels):
        raise ValueError(f"{path}: has {found} channels, not {channels}")
    return pixels[..., :3] if found == 4 else np.repeat(pixels, 3, 2)


def convertible(found: int, channels: int) -> bool:
    """Whether `read_pixels` can turn the channels of a file into so many."""
    return found == channels or (channels == 3 and found in (1, 4))


def _mode(file: Image.Image) -> str:
    """The Pillow mode that keeps an image's channels and bits."""
    if file.mode in ("1", "L", "LA"):
        return "L"
    if file.mode.startswith("I;16"):
        return "I;16"
    if file.mode[0] in "IF":
        raise _UnsuitableError(f"mode {file.mode} is neither 8 nor 16 bits per channel")
    return "RGB"


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def _tiff_pixels(path: Path) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        axis = _channel_axis(series)
        try:
            pixels = series.asarray()
        except ValueError as error:
            # tifffile leaves most compressions to a package that may be missing.
            if "imagecodecs" not in str(error):
                raise
            with Image.open(path) as file:
                pixels = np.asarray(file)
            if (pixels.shape, pixels.dtype) != (series.shape, series.dtype):
                raise _UnsuitableError(f"{error}: pip install imagecodecs") from error
    return pixels[..., None] if axis is None else np.moveaxis(pixels, axis, -1)


def _channel_axis(series: Any) -> int | None:
    """The axis of the channels: the one that is named so, or else the shortest."""
    shape, axes = series.shape, series.axes
    if len(shape) not in (2, 3) or series.dtype not in (np.uint8, np.uint16):
        raise _UnsuitableError(
            f"{axes} {shape} {series.dtype} is not an image of 8 or 16 bits"
        )
    if len(shape) == 2:
        return None
    named = [axes.index(name) for name in "SC" if name in axes]
    return named[0] if named else int(np.argmin(shape))


def read_mask_size(path: Path) -> tuple[int, int]:
    """(height, width) of a mask, from its header.

    Raises:
        ValueError: naming the file, if it is not an image that Pillow reads.
    """
    with _naming(path), Image.open(path) as file:
        return file.height, file.width


def read_mask(path: Path, colour: bool = False) -> np.ndarray:
    """Reads a mask.

    Args:
        path: a file that Pillow reads.
        colour: return colours, also of palette images; else ids, also of images whose
            three channels are equal.

    Returns:
        (h, w) uint16 ids, or (h, w, 3) uint8 colours.

    Raises:
        ValueError: naming the file, if it is not an image, or not of that kind.
    """
    with _naming(path), Image.open(path) as file:
        if not colour:
            return _ids(file)
        if file.mode[0] in "IF":
            raise _UnsuitableError(f"mode {file.mode} holds numbers, not colours")
        return np.asarray(file.convert("RGB"))


def mask_values(path: Path) -> MaskValues:
    """Counts the ids and colours of a mask.

    Raises:
        ValueError: naming the file, if it is not an image, or holds too many colours
            for a mask.
    """
    with _naming(path), Image.open(path) as file:
        if file.format == "JPEG":
            raise _UnsuitableError(
                "JPEG changes the ids or colours of a mask; save it as PNG"
            )
        if _is_true_colour(file):
            found = file.convert("RGB").getcolors(_MAX_COLOURS)
            if found is None:
                raise _UnsuitableError(
                    f"holds more than {_MAX_COLOURS} colours, too many for a mask: is "
                    "it a photograph, or are edges smoothed? Save masks as PNG without "
                    "smoothing"
                )
            colours = {(r, g, b): n for n, (r, g, b) in found}  # type: ignore[misc]
            grey = all(r == g == b for r, g, b in colours)
            ids = {r: n for (r, _, _), n in colours.items()} if grey else None
            return MaskValues(ids, colours, {})
        counts = np.bincount(_ids(file).ravel())
        ids = {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
        if file.mode[0] == "I":
            return MaskValues(ids, None, {})
        if file.mode == "P":
            levels = (file.getpalette() or []) + 768 * [0]
        else:
            white = 255 if file.mode == "1" else 1
            levels = [white * level for level in range(256) for _ in range(3)]
        palette = {
            i: (levels[3 * i], levels[3 * i + 1], levels[3 * i + 2]) for i in ids
        }
        counted = Counter[RGB]()
        for i, n in ids.items():
            counted[palette[i]] += n
        return MaskValues(ids, dict(counted), palette if file.mode == "P" else {})


def _is_true_colour(file: Image.Image) -> bool:
    return file.mode[0] not in "IF" and file.mode not in ("1", "L", "LA", "P")


def _ids(file: Image.Image) -> np.ndarray:
    """(h, w) uint16 ids of a mask."""
    if file.mode[0] == "F":
        raise _UnsuitableError("holds fractions, not class ids")
    if _is_true_colour(file):
        colours = np.asarray(file.convert("RGB"))
        if (colours != colours[..., :1]).any():
            raise _UnsuitableError("holds colours instead of class ids")
        return colours[..., 0].astype(np.uint16)
    ids = np.asarray(file.convert("L") if file.mode == "LA" else file)
    if ids.min() < 0 or ids.max() > 65535:
        raise _UnsuitableError(
            f"holds ids from {ids.min()} to {ids.max()}, not 0 to 65535"
        )
    return ids.astype(np.uint16)


def as_float(image):
    """A uint8 or uint16 image as float32 on the 0..255 scale. NumPy or JAX.

    Example:
        >>> as_float(np.array([[[0, 257, 65535]]], np.uint16)).round(3).tolist()
        [[[0.0, 1.0, 255.0]]]
    """
    scale = 1 / _PER_LEVEL if image.dtype == np.uint16 else 1
    return image.astype(np.float32) * np.float32(scale)


def as_uint8(image: np.ndarray) -> np.ndarray:
    """An image of 8 or 16 bits as uint8: 16-bit values are divided by 257.

    Example:
        >>> as_uint8(np.array([[[0, 257, 65535]]], np.uint16)).tolist()
        [[[0, 1, 255]]]
    """
    if image.dtype == np.uint8:
        return image
    return np.rint(image * np.float32(1 / _PER_LEVEL)).astype(np.uint8)


def channel_sums(image: np.ndarray) -> np.ndarray:
    """(c,) float64: the sum of each channel of (h, w, c) on the 0..255 scale."""
    scale = _PER_LEVEL if image.dtype == np.uint16 else 1
    return image.sum((0, 1), dtype=np.float64) / scale
