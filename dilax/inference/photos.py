"""Image files in and out: photographs as a viewer shows them, label maps as pictures.

Photographs for prediction may be of any kind: grey, 16 bits, CMYK, transparent, rotated
by EXIF. They are read as upright, opaque RGB with 8 bits, up to a maximum size.

Large pictures are written in bands and are never in memory as a whole. Pillow cannot do
this: it encodes only images that are in memory, with four bytes per pixel. A PNG is a
sequence of chunks, and its one compressed stream may be divided among any number of
them (ISO/IEC 15948, §5, §9).
"""

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dilax.data import DatasetSpec, read_pixels
from dilax.data.pixels import (
    as_numbers,
    is_tiff,
    naming,
    of_16_bits,
    open_image,
    read_header,
    upright_rgb,
)
from dilax.runtime.files import whole_or_not_at_all

_ROWS = 256  # of a band
MAX_PIXELS = 500_000_000  # a little more than 20,000 × 20,000; 1.5 GB as RGB
_RGB = 2  # of TIFF's PhotometricInterpretation


@contextlib.contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images of any size, in all threads: `count_pixels` checks sizes.

    Pillow's own limit applies to the whole process; it is restored afterwards.
    """
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def count_pixels(file: Path | bytes, name: str, max_pixels: int = MAX_PIXELS) -> int:
    """Return the number of pixels from the header of an image, without decoding it.

    Args:
        file: a path, or the content of such a file.
        name: of the file, for messages.
        max_pixels: the largest number that is accepted.

    Raises:
        ValueError: naming the file, if it is not an image or is larger.
    """
    with naming(name):
        try:
            with open_image(file) as image:
                width, height = image.size
        except Exception:  # Pillow lacks some kinds of TIFF
            if isinstance(file, bytes) or not is_tiff(file):
                raise
            height, width = read_header(file, mask=True).size
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: has {width}x{height} pixels, more than --max_pixels={max_pixels};"
            " raise the limit if that is correct"
        )
    return width * height


def read_photo(file: Path | bytes, name: str, channels: int = 3) -> np.ndarray:
    """Read an image as (h, w, channels), uint8 RGB if there are three channels.

    Transparent pixels are blended with white. 16-bit grey is scaled by 1 / 257. Images
    with other numbers of channels are read as they are.

    Args:
        file: a path, or the content of such a file.
        name: of the file, for messages.
        channels: number of channels that the network takes.

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
            raise ValueError(
                f"{name}: images with {channels} channels can only be read from files"
            )
        return read_pixels(file, channels)
    with naming(name):
        if isinstance(file, Path) and _is_deep_colour(file):
            pixels = read_pixels(file)
            if pixels.shape[2] < 3:
                raise ValueError(f"RGB with {pixels.shape[2]} channels")
            return of_16_bits(pixels[..., :3])
        with open_image(file) as image:
            return upright_rgb(image)


def as_image(image: Any, channels: int) -> np.ndarray:
    """Return an image of any kind as (h, w, channels), uint8 or uint16.

    Args:
        image: an array of NumPy, JAX, or PyTorch, (h, w, c) or grey (h, w); nested
            lists; a PIL image; or the path of a file.
        channels: number of channels that the network takes; if it is 3, grey is
            repeated, and transparent pixels are blended with white.

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> as_image(np.zeros((4, 5), np.uint8), 3).shape
        (4, 5, 3)
    """
    if isinstance(image, str | Path):
        return read_photo(Path(image).expanduser(), str(image), channels)
    if isinstance(image, Image.Image) and channels == 3:
        return upright_rgb(image)
    array = as_numbers("an image", image)
    if array.ndim == 2:
        array = array[..., None]
    if channels != 3 or array.ndim != 3:
        return array
    if array.shape[2] == 4 and array.dtype == np.uint8 and array.size:
        return upright_rgb(Image.fromarray(np.ascontiguousarray(array)))
    return array.repeat(3, 2) if array.shape[2] == 1 else array


def _is_deep_colour(file: Path) -> bool:
    """Whether a file is a TIFF with 16-bit colours, which Pillow misreads in planes."""
    if not is_tiff(file):
        return False
    try:
        import tifffile  # here, because it takes long

        with tifffile.TiffFile(file) as tiff:
            page: Any = tiff.pages.first
            return page.photometric == _RGB and page.bitspersample == 16
    except Exception:
        return False


def palette_image(labels: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """Return (h, w) labels as a palette image of class ids; ignored pixels are white.

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


def overlay_bands(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, opacity: float = 0.6
) -> Iterator[np.ndarray]:
    """Yield the picture of `overlay` in bands: (rows, w, 3) uint8, top to bottom."""
    for y in range(0, len(labels), _ROWS):
        colours = palette_image(labels[y : y + _ROWS], spec).convert("RGB")
        below = Image.fromarray(as_rgb(image[y : y + _ROWS]))
        yield np.asarray(Image.blend(below, colours, opacity))


def overlay(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, opacity: float = 0.6
) -> Image.Image:
    """Return the image with the class colours blended over it.

    Args:
        image: (h, w, c) uint8 or uint16; the first three channels are shown as RGB.
        labels: (h, w) train ids.
        spec: palette.
        opacity: of the colours, 0..1; at 1 they hide the image.

    Example:
        >>> from dilax.data import DATASETS
        >>> image, labels = np.full((2, 3, 3), 100, np.uint8), np.full((2, 3), 15)
        >>> overlay(image, labels, DATASETS["voc"], opacity=0.5).getpixel((0, 0))
        (146, 114, 114)
    """
    bands = overlay_bands(image, labels, spec, opacity)
    return Image.fromarray(np.concatenate(list(bands)))


def legend(spec: DatasetSpec) -> Image.Image:
    """Return a picture of the classes' colours and names, one per row.

    Example:
        >>> from dilax.data import DATASETS
        >>> picture = legend(DATASETS["camvid"])
        >>> picture.height, picture.getpixel((12, 12))
        (272, (128, 0, 0))
    """
    font, row = ImageFont.load_default(16), 24
    wide = max(font.getlength(name) for name in spec.classes)
    size = (math.ceil(wide) + 52, row * spec.num_classes + 8)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(spec.classes):
        y = 4 + i * row
        draw.rectangle((8, y + 3, 36, y + row - 4), spec.palette[i], outline="grey")
        draw.text((44, y + row / 2), name, "black", font, anchor="lm")
    return picture


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return (h, w, 3) uint8 for display of (h, w, c) uint8 or uint16.

    The first three channels are shown. The largest 16-bit value becomes 255, because
    sensors seldom use the whole range.

    Example:
        >>> as_rgb(np.full((2, 2, 1), 7, np.uint8)).shape
        (2, 2, 3)
    """
    if image.dtype != np.uint8:
        image = (image * (255 / max(1, image.max()))).astype(np.uint8)
    return image[..., [min(i, image.shape[2] - 1) for i in range(3)]]


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image file atomically, in the format of its suffix.

    Raises:
        ValueError: if the suffix is not that of a format that can be written.
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
        raise ValueError(f"{path}: {path.suffix!r} is not an image format; use .png")
    with whole_or_not_at_all(path) as partial:
        image.save(partial, format=kind)


PNG_END = b"IEND\xaeB`\x82"  # the last chunk of every PNG, without its length
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SUB = 1  # the filter that stores each byte's difference from the pixel to its left


def save_bands(bands: Iterator[np.ndarray], size: tuple[int, int], path: Path) -> None:
    """Write an RGB image as PNG, atomically.

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
            rows = np.full((len(band), 1 + 3 * size[1]), _SUB, np.uint8)
            left = np.zeros_like(band[:, :1])
            rows[:, 1:] = np.diff(band, axis=1, prepend=left).reshape(len(band), -1)
            file.write(_chunk(b"IDAT", packer.compress(rows.tobytes())))
        file.write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    length, check = len(content), zlib.crc32(checked)
    return struct.pack(">I", length) + checked + struct.pack(">I", check)
