"""Image files as arrays: images of any channels, masks of class ids or of colours."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from dilax.data.spec import RGB

T = TypeVar("T")
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_MOST_COLOURS = 256
_PER_LEVEL = 257  # 65535 / 255: 16-bit values per 8-bit value


class _UnfitError(ValueError):
    """A file is an image, but not of the kind that is wanted."""


class Header(NamedTuple):
    """What an image file holds.

    Attributes:
        size: (height, width) in pixels.
        channels: as `read_pixels` gives them.
        bits: of each channel, 8 or 16.
    """

    size: tuple[int, int]
    channels: int
    bits: int


class MaskValues(NamedTuple):
    """What a mask holds, and how many pixels of each.

    Attributes:
        ids: class ids; None if the mask can only be one of colours.
        colours: colours; None if the mask can only be one of ids.
        palette: the colours of ids in a palette image, {} in others.
    """

    ids: dict[int, int] | None
    colours: dict[RGB, int] | None
    palette: dict[int, RGB]


def read_header(path: Path) -> Header:
    """Reads what an image file says of itself, and no pixels.

    Raises:
        ValueError: naming the file, if it is not an image of 8 or 16 bits a channel.
    """
    return _of_tiff(path, _tiff_header) if _is_tiff(path) else _decode(path, _header)


def read_pixels(
    path: Path, channels: int | None = None, upright: bool = False
) -> np.ndarray:
    """Reads an image as (h, w, c), uint8 or uint16, with the channels that it has.

    TIFF keeps all its channels and bits. Of other formats transparency is left out, and
    colour images of 16 bits come with their upper 8.

    Args:
        path: the file.
        channels: how many are wanted; 3 makes RGB of grey and transparent images.
        upright: turn the image as its EXIF orientation says, as viewers do; not TIFF.

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
    if _is_tiff(path):
        pixels = _read_tiff(path)
    else:
        pixels = _decode(path, lambda file: _native(file, upright))
    found = pixels.shape[2]
    if channels in (None, found):
        return pixels
    if not fits(found, channels):
        raise ValueError(f"{path}: has {found} channels, not {channels}")
    return pixels[..., :3] if found == 4 else np.repeat(pixels, 3, 2)


def fits(found: int, channels: int) -> bool:
    """Whether `read_pixels` makes so many channels of those that it finds."""
    return found == channels or (channels == 3 and found in (1, 4))


def read_mask_size(path: Path) -> tuple[int, int]:
    """(height, width) of a mask, from its header.

    Raises:
        ValueError: naming the file, if it is not an image that Pillow reads.
    """
    return _decode(path, lambda file: (file.height, file.width))


def read_mask(path: Path, colour: bool = False) -> np.ndarray:
    """Reads a mask.

    Args:
        path: a file that Pillow reads.
        colour: give colours, also of palette images; else ids, also of images whose
            three channels are equal.

    Returns:
        (h, w) uint16 ids, or (h, w, 3) uint8 colours.

    Raises:
        ValueError: naming the file, if it is not an image, or not of that kind.
    """

    def convert(file: Image.Image) -> np.ndarray:
        if not colour:
            return _ids(file)
        if file.mode[0] in "IF":
            raise _UnfitError(f"mode {file.mode} holds numbers, not colours")
        return np.asarray(file.convert("RGB"))

    return _decode(path, convert)


def mask_values(path: Path) -> MaskValues:
    """Counts what a mask holds.

    Raises:
        ValueError: naming the file, if it is not an image, or holds too many colours
            for a mask.
    """
    return _decode(path, _mask_values)


def _decode(path: Path, convert: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(path) as file:
            return convert(file)
    except _UnfitError as error:
        raise ValueError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def _mode(file: Image.Image) -> str:
    """The mode that keeps an image's channels and bits."""
    if file.mode in ("1", "L", "LA"):
        return "L"
    if file.mode.startswith("I;16"):
        return "I;16"
    if file.mode[0] in "IF":
        raise _UnfitError(f"mode {file.mode} is neither 8 nor 16 bits a channel")
    return "RGB"


def _header(file: Image.Image) -> Header:
    mode = _mode(file)
    channels = 3 if mode == "RGB" else 1
    return Header((file.height, file.width), channels, 16 if mode == "I;16" else 8)


def _native(file: Image.Image, upright: bool) -> np.ndarray:
    mode = _mode(file)
    turned = ImageOps.exif_transpose(file) if upright else file
    if mode == "I;16":
        return np.asarray(turned).astype(np.uint16)[..., None]
    pixels = np.asarray(turned.convert(mode))
    return pixels if mode == "RGB" else pixels[..., None]


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def _of_tiff(path: Path, read: Callable[[Any], T]) -> T:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return read(file.series[0])
    except _UnfitError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # tifffile raises what its parsing happens upon
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def _tiff_header(series: Any) -> Header:
    axis = _channel_axis(series)
    size = [n for i, n in enumerate(series.shape) if i != axis]
    channels = 1 if axis is None else series.shape[axis]
    return Header((size[0], size[1]), channels, 8 * series.dtype.itemsize)


def _read_tiff(path: Path) -> np.ndarray:
    def read(series: Any) -> np.ndarray:
        axis = _channel_axis(series)
        try:
            pixels = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            pixels = _by_pillow(path, series, error)
        return pixels[..., None] if axis is None else np.moveaxis(pixels, axis, -1)

    return _of_tiff(path, read)


def _by_pillow(path: Path, series: Any, error: ValueError) -> np.ndarray:
    """Pixels whose compression tifffile leaves to a package that may be missing."""
    with Image.open(path) as file:
        pixels = np.asarray(file)
    if pixels.shape != series.shape or pixels.dtype != series.dtype:
        raise _UnfitError(f"{error}: pip install imagecodecs") from error
    return pixels


def _channel_axis(series: Any) -> int | None:
    """The axis of the channels: the one called so, or else the shortest."""
    shape, axes = series.shape, series.axes
    if len(shape) not in (2, 3) or series.dtype not in (np.uint8, np.uint16):
        raise _UnfitError(f"{axes} {shape} {series.dtype} is no image of 8 or 16 bits")
    if len(shape) == 2:
        return None
    named = [axes.index(name) for name in "SC" if name in axes]
    return named[0] if named else int(np.argmin(shape))


def _ids(file: Image.Image) -> np.ndarray:
    if file.mode[0] == "F":
        raise _UnfitError("holds fractions, not class ids")
    if _true_colour(file):
        colours = np.asarray(file.convert("RGB"))
        if (colours != colours[..., :1]).any():
            raise _UnfitError("holds colours where class ids are wanted")
        return colours[..., 0].astype(np.uint16)
    ids = np.asarray(file.convert("L") if file.mode == "LA" else file)
    if ids.min() < 0 or ids.max() > 65535:
        raise _UnfitError(f"holds ids from {ids.min()} to {ids.max()}, not 0 to 65535")
    return ids.astype(np.uint16)


def _true_colour(file: Image.Image) -> bool:
    return file.mode[0] not in "IF" and file.mode not in ("1", "L", "LA", "P")


def _mask_values(file: Image.Image) -> MaskValues:
    if file.format == "JPEG":
        raise _UnfitError("JPEG changes the ids or colours of a mask; save it as PNG")
    if _true_colour(file):
        return _colour_values(file)
    counts = np.bincount(_ids(file).ravel())
    ids = {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    if file.mode == "P":
        return _palette_values(file, ids)
    if file.mode[0] == "I":
        return MaskValues(ids, None, {})
    white = 255 if file.mode == "1" else 1
    return MaskValues(ids, {(white * i,) * 3: n for i, n in ids.items()}, {})


def _palette_values(file: Image.Image, ids: dict[int, int]) -> MaskValues:
    levels = (file.getpalette() or []) + 768 * [0]
    palette = {i: (levels[3 * i], levels[3 * i + 1], levels[3 * i + 2]) for i in ids}
    colours = Counter[RGB]()
    for i, n in ids.items():
        colours[palette[i]] += n
    return MaskValues(ids, dict(colours), palette)


def _colour_values(file: Image.Image) -> MaskValues:
    found = file.convert("RGB").getcolors(_MOST_COLOURS)
    if found is None:
        raise _UnfitError(
            f"holds more than {_MOST_COLOURS} colours, too many for a mask: is it a "
            "photograph, or are edges smoothed? Save masks as PNG without smoothing"
        )
    colours = {(r, g, b): n for n, (r, g, b) in found}  # type: ignore[misc]
    grey = all(r == g == b for r, g, b in colours)
    ids = {r: n for (r, _, _), n in colours.items()} if grey else None
    return MaskValues(ids, colours, {})


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
