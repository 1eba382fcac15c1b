"""Photographs as a viewer shows them: upright, RGB, 8 bits, opaque; and not too large.

What a user hands in for prediction is of any kind: grey, of 16 bits, CMYK, transparent,
lying on its side as EXIF says.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from dilax.datasets import read_pixels

MAX_PIXELS = 500_000_000  # 20,000 × 20,000 and some; 1.5 GB as RGB
_ROWS = 256
_ORIENTATION = 0x0112
_RGB = 2  # of TIFF's PhotometricInterpretation
_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError),
    Image.DecompressionBombError,
)


@contextlib.contextmanager
def any_size() -> Iterator[None]:
    """Within it Pillow opens images of any size, in all threads: `count_pixels` checks.

    Pillow's own limit is one for the whole process; it is put back afterwards.
    """
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def count_pixels(file: Path | bytes, name: str, max_pixels: int = MAX_PIXELS) -> int:
    """The number of pixels that the header of an image tells; nothing is decoded.

    Args:
        file: a path, or what such a file holds.
        name: of the file, for messages.
        max_pixels: the most that is accepted.

    Raises:
        ValueError: naming the file, if it is not an image or larger than that.
    """
    with _named(name):
        width, height = _size(file)
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: has {width}x{height} pixels, more than --max_pixels={max_pixels};"
            " give a larger number if that is right"
        )
    return width * height


def _size(file: Path | bytes) -> tuple[int, int]:
    try:
        with _opened(file) as image:
            return image.size
    except _UNREADABLE:
        if not _is_tiff(file):
            raise
        with _tiff(file) as tiff:
            page = tiff.pages.first
            return page.imagewidth, page.imagelength


def _is_tiff(file: Path | bytes) -> TypeGuard[Path]:
    return isinstance(file, Path) and file.suffix.lower() in (".tif", ".tiff")


def read_photo(file: Path | bytes, name: str, channels: int = 3) -> np.ndarray:
    """Reads an image as (h, w, channels), uint8 RGB where there are three.

    Colours of transparent pixels are mixed with white. 16-bit grey is scaled by
    1 / 257. Other numbers of channels are read from the file as they are.

    Args:
        file: a path, or what such a file holds.
        name: of the file, for messages.
        channels: that the network takes.

    Raises:
        ValueError: naming the file, if it is not an image, is truncated, or has another
            number of channels.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 3), 9).save(file, "png")
        >>> read_photo(file.getvalue(), "a grey image").shape
        (3, 4, 3)
    """
    if channels != 3:
        if isinstance(file, bytes):
            raise ValueError(f"{name}: images of {channels} channels are read by path")
        return read_pixels(file, channels)
    with _named(name):
        if _is_tiff(file) and _is_deep_colour(file):
            return _deep_colour(file)
        with _opened(file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image)


@contextlib.contextmanager
def _tiff(file: Path) -> Iterator[Any]:
    """A `tifffile.TiffFile`, whose own errors become `ValueError`s."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            yield tiff
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _is_deep_colour(file: Path) -> bool:
    """Whether a TIFF holds colours of 16 bits, which Pillow misreads in planes."""
    try:
        with _tiff(file) as tiff:
            page = tiff.pages.first
            return page.photometric == _RGB and page.bitspersample == 16
    except _UNREADABLE:
        return False


def _deep_colour(file: Path) -> np.ndarray:
    with _tiff(file) as tiff:
        tag = tiff.pages.first.tags.get("Orientation")
    image = Image.fromarray(_of_16_bits(read_pixels(file)[..., :3]))
    image.getexif()[_ORIENTATION] = tag.value if tag else 1
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image)


def _pixels(image: Image.Image) -> np.ndarray:
    """(h, w, 3) uint8, in bands: Pillow would copy the whole image several times."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, _ROWS):
        below = min(y + _ROWS, height)
        pixels[y:below] = _rgb(image.crop((0, y, width, below)))
    return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        return _of_16_bits(np.asarray(image))[..., None]
    if image.mode == "F":
        raise ValueError("mode F is neither 8 nor 16 bits a channel")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _of_16_bits(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(
            f"values from {values.min()} to {values.max()} are not 16 bits"
        )
    return np.rint(values / np.float32(257)).astype(np.uint8)


def _opened(file: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        reason = f"{error.strerror or error}" if isinstance(error, OSError) else error
        message = f"{name}: cannot be read as an image ({reason})"
        raise ValueError(message) from error
