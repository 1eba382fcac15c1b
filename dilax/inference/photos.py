"""Photographs as a viewer shows them: upright, RGB, 8 bits, opaque; and not too large.

What a user hands in for prediction is of any kind: grey, of 16 bits, CMYK, transparent,
lying on its side as EXIF says.

PNG files of colour images that are written band by band, and never held whole.

Pillow encodes images that are in memory, with four bytes a pixel. A PNG is a run of
chunks; one compressed stream may be cut into any number of them.

Source: ISO/IEC 15948, the PNG specification, §5 (chunks), §9 (filters).

Label maps as pictures: palette PNGs, colours, overlays; image files.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from dilax.data import DatasetSpec, read_pixels
from dilax.data.pixels import as_uint8
from dilax.runtime.files import whole_or_not_at_all

PNG_END = b"IEND\xaeB`\x82"  # the last chunk of every PNG, but for its length
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SUB = 1  # the filter that gives each byte's difference from the pixel to its left


def save_bands(bands: Iterator[np.ndarray], size: tuple[int, int], path: Path) -> None:
    """Writes an RGB image whole or not at all.

    Args:
        bands: (rows, w, 3) uint8 from top to bottom.
        size: (h, w) of the image.
        path: the file.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, 2, 0, 0, 0)
    packer = zlib.compressobj()
    with whole_or_not_at_all(path) as partial, partial.open("wb") as file:
        file.write(_SIGNATURE + _chunk(b"IHDR", header))
        for band in bands:
            file.write(_chunk(b"IDAT", packer.compress(_filtered(band))))
        file.write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))


def _filtered(band: np.ndarray) -> bytes:
    rows = np.full((len(band), 1 + 3 * band.shape[1]), _SUB, np.uint8)
    differences = np.diff(band, axis=1, prepend=np.zeros_like(band[:, :1]))
    rows[:, 1:] = differences.reshape(len(band), -1)
    return rows.tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    length, check = len(content), zlib.crc32(checked)
    return struct.pack(">I", length) + checked + struct.pack(">I", check)


_ROWS = 256


def palette_image(labels: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """(h, w) labels as a palette image: pixel values are class ids, ignored is white.

    Args:
        labels: train ids 0..k−1, or the ignore label.
        spec: palette and ignore label.

    Example:
        >>> from dilax.data import DATASETS
        >>> picture = palette_image(np.array([[0, 15]]), DATASETS["voc"])
        >>> picture.mode, picture.convert("RGB").getpixel((1, 0))
        ('P', (192, 128, 128))
    """
    table = np.zeros((256, 3), np.uint8)
    table[: spec.num_classes] = spec.palette
    table[spec.ignore_label] = 255
    image = Image.fromarray(labels.astype(np.uint8, copy=False))
    image.putpalette(table.ravel().tolist())
    return image


def colour_bands(labels: np.ndarray, spec: DatasetSpec) -> Iterator[np.ndarray]:
    """(h, w) labels in the classes' colours: (rows, w, 3) uint8, from top to bottom.

    Args:
        labels: train ids 0..k−1, or the ignore label.
        spec: palette and ignore label.
    """
    for y in range(0, len(labels), _ROWS):
        band = palette_image(labels[y : y + _ROWS], spec)
        yield np.asarray(band.convert("RGB"))


def overlay_bands(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, opacity: float = 0.6
) -> Iterator[np.ndarray]:
    """What `overlay` shows in bands: (rows, w, 3) uint8, from top to bottom."""
    for i, colours in enumerate(colour_bands(labels, spec)):
        below = as_rgb(image[i * _ROWS : (i + 1) * _ROWS])
        blended = Image.blend(Image.fromarray(below), Image.fromarray(colours), opacity)
        yield np.asarray(blended)


def overlay(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, opacity: float = 0.6
) -> Image.Image:
    """The image with the classes' colours over it.

    Args:
        image: (h, w, c) uint8 or uint16; RGB, or its first channels are shown as RGB.
        labels: (h, w) train ids.
        spec: palette.
        opacity: of the colours, 0..1.

    Example:
        >>> from dilax.data import DATASETS
        >>> image, labels = np.full((2, 3, 3), 100, np.uint8), np.full((2, 3), 15)
        >>> overlay(image, labels, DATASETS["voc"], opacity=0.5).getpixel((0, 0))
        (146, 114, 114)
    """
    bands = overlay_bands(image, labels, spec, opacity)
    return Image.fromarray(np.concatenate(list(bands)))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(h, w, c) uint8 or uint16 → (h, w, 3) uint8 to look at: the first 3 channels.

    The largest value of 16 bits becomes 255, as sensors seldom fill them.

    Example:
        >>> as_rgb(np.full((2, 2, 1), 7, np.uint8)).shape
        (2, 2, 3)
    """
    if image.dtype != np.uint8:
        image = (image * (255 / max(1, image.max()))).astype(np.uint8)
    return image[..., [min(i, image.shape[2] - 1) for i in range(3)]]


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image file whole or not at all; the suffix names the format.

    Raises:
        ValueError: if the suffix names no format that can be written.
        OSError: naming the file or its folder, if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_image(Image.new("L", (4, 3)), Path(folder, "new", "a.png"))
        ...     Path(folder, "new", "a.png").exists()
        True
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{path}: {path.suffix!r} names no image format; take .png")
    with whole_or_not_at_all(path) as partial:
        image.save(partial, format=kind)


MAX_PIXELS = 500_000_000  # 20,000 × 20,000 and some; 1.5 GB as RGB
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
    return as_uint8(values)


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
