"""Image files as arrays, with any number of channels, upright as viewers show them.

Source: the formats are those of Pillow, and TIFF as tifffile reads it.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

_CONVERT = "convert it to uint8 or uint16"
_BAND = 256  # rows
_PER_LEVEL = 257  # 65535 / 255: 16-bit values per 8-bit value


class UnsuitableError(ValueError):
    """A file is an image, but not of the required kind."""


class Header(NamedTuple):
    """The header of an image file.

    Attributes:
        size: (height, width) in pixels, upright.
        channels: as `read_pixels` returns them; 0 for masks.
        bits: of each channel, 8 or 16; 0 for masks.
        orientation: EXIF or TIFF orientation, 1 to 8; 1 is upright.
    """

    size: tuple[int, int]
    channels: int
    bits: int
    orientation: int = 1

    def shown(self, upright: bool) -> tuple[int, int]:
        """(height, width) of the image, upright or as stored."""
        return self.size if upright or self.orientation < 5 else self.size[::-1]


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turn any error of a decoder into a `ValueError` that names the file.

    Broken files make Pillow and tifffile raise all kinds of errors while they parse.
    """
    try:
        yield
    except UnsuitableError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def open_image(file: Path | bytes) -> Image.Image:
    """Open an image file or its content, including HEIC if pillow-heif is installed.

    Raises:
        ValueError: if it is HEIC, and pillow-heif is missing.
        UnidentifiedImageError: if it is not an image.
    """
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except UnidentifiedImageError:
        start = file if isinstance(file, bytes) else file.read_bytes()
        if start[4:8] != b"ftyp" or start[8:12] not in (b"heic", b"heix", b"mif1"):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        message = "HEIC is read by pillow-heif: pip install 'dilax[heif]'"
        raise UnsuitableError(message) from error
    register_heif_opener()
    return open_image(file)


def orientation_of(file: Image.Image) -> int:
    """Return the EXIF orientation of an open image, 1 to 8.

    A missing, broken, or invalid orientation counts as 1, upright.
    """
    try:
        opened: Any = file
        if file.format == "PNG" and isinstance(opened.fp, io.BufferedReader):
            # Pillow would decode the pixels first, because EXIF may come after them.
            exif = Image.Image.getexif(file)
            if not exif:
                exif.load(_late_exif(Path(opened.filename)))
        else:
            exif = file.getexif()
        found = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF raises errors of many kinds
        return 1
    return found if found in range(1, 9) else 1


def _late_exif(path: Path) -> bytes:
    """Return the EXIF that a PNG may have after its pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, io.SEEK_CUR)  # a checksum follows
    return b""


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels (h, w, …) as viewers show them.

    Example:
        >>> turned(np.array([[1, 2]]), 6).tolist()
        [[1], [2]]
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # Each is an optional transposition, followed by flips of rows and of columns.
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def read_header(path: Path, mask: bool = False) -> Header:
    """Read the header of an image file, without its pixels.

    Args:
        path: the file.
        mask: accept numbers of any kind.

    Raises:
        ValueError: naming the file, if it is not an image of 8 or 16 bits per channel.
    """
    channels = bits = 0
    size: tuple[int, ...]
    with naming(path):
        if is_tiff(path):
            import tifffile  # here, because it takes long

            with tifffile.TiffFile(path) as tiff:
                page: Any = tiff.pages.first
                size, orientation = (page.imagelength, page.imagewidth), tag_of(page)
                if not mask:
                    series = tiff.series[0]
                    axis = _channel_axis(series)
                    size = tuple(n for i, n in enumerate(series.shape) if i != axis)
                    channels = 1 if axis is None else series.shape[axis]
                    bits = 8 * series.dtype.itemsize
        else:
            with open_image(path) as file:
                size, orientation = (file.height, file.width), orientation_of(file)
                if not mask:
                    kinds = {"L": (1, 8), "I;16": (1, 16), "RGB": (3, 8)}
                    channels, bits = kinds[_mode(file)]
    height, width = size[::-1] if orientation >= 5 else size
    return Header((height, width), channels, bits, orientation)


def tag_of(page: Any) -> int:
    """Return the orientation of a page of a TIFF."""
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag and tag.value in range(1, 9) else 1


def read_pixels(
    path: Path, channels: int | None = None, upright: bool = True
) -> np.ndarray:
    """Read an image as (h, w, c), uint8 or uint16, with its own channels.

    TIFF keeps all its channels and bits. In other formats transparency is dropped, and
    16-bit colour images keep their upper 8 bits.

    Args:
        path: the file.
        channels: number of channels to return; 3 converts grey and transparent images
            to RGB.
        upright: turn the image by its orientation, as viewers do.

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
    with naming(path):
        if is_tiff(path):
            import tifffile  # here, because it takes long

            with tifffile.TiffFile(path) as tiff:
                series, orientation = tiff.series[0], tag_of(tiff.pages.first)
                axis = _channel_axis(series)
                try:
                    pixels = series.asarray()
                except ValueError as error:
                    pixels = decoded_by_pillow(path, orientation, error)
                    if (pixels.shape, pixels.dtype) != (series.shape, series.dtype):
                        message = f"{error}: pip install imagecodecs"
                        raise UnsuitableError(message) from error
            if axis is not None:
                pixels = np.moveaxis(pixels, axis, -1)
        else:
            with open_image(path) as file:
                mode, orientation = _mode(file), orientation_of(file)
                if mode == "I;16":
                    pixels = np.asarray(file).astype(np.uint16)  # from any byte order
                else:
                    pixels = np.asarray(file.convert(mode))
        pixels = np.atleast_3d(pixels)
        if upright and orientation > 1:
            pixels = np.ascontiguousarray(turned(pixels, orientation))
    found = pixels.shape[2]
    if channels in (None, found):
        return pixels
    if not convertible(found, channels):
        raise ValueError(f"{path}: has {found} channels, not {channels}")
    return pixels[..., :3] if found == 4 else np.repeat(pixels, 3, 2)


def convertible(found: int, channels: int) -> bool:
    """Whether `read_pixels` can convert a file's channels to this number."""
    return found == channels or (channels == 3 and found in (1, 4))


def _mode(file: Image.Image) -> str:
    """Return the Pillow mode that keeps an image's channels and bits."""
    if file.mode in ("1", "L", "LA"):
        return "L"
    if file.mode.startswith("I;16"):
        return "I;16"
    if file.mode[0] in "IF":
        raise UnsuitableError(
            f"mode {file.mode} is neither 8 nor 16 bits per channel; {_CONVERT}"
        )
    return "RGB"


def is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def decoded_by_pillow(path: Path, orientation: int, error: ValueError) -> np.ndarray:
    """Return the pixels of a TIFF as stored, if tifffile lacks their compression.

    For most compressions, tifffile needs a package that may be missing.
    """
    if "imagecodecs" not in str(error):
        raise error
    with Image.open(path) as file:
        return as_stored(np.asarray(file), orientation)


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Undo `turned`: 6 and 8 undo each other, the others themselves."""
    return turned(upright, {6: 8, 8: 6}.get(orientation, orientation))


def _channel_axis(series: Any) -> int | None:
    """Return the axis of the channels: the one with this name, or else the shortest."""
    shape, axes = series.shape, series.axes
    if len(shape) not in (2, 3) or series.dtype not in (np.uint8, np.uint16):
        raise UnsuitableError(
            f"{axes} {shape} {series.dtype} is not an image of 8 or 16 bits; {_CONVERT}"
        )
    if len(shape) == 2:
        return None
    named = [axes.index(name) for name in "SC" if name in axes]
    return named[0] if named else int(np.argmin(shape))


def as_float(image):
    """Return a uint8 or uint16 image as float32 on the 0..255 scale. NumPy or JAX.

    Example:
        >>> as_float(np.array([[[0, 257, 65535]]], np.uint16)).round(3).tolist()
        [[[0.0, 1.0, 255.0]]]
    """
    scale = 1 / _PER_LEVEL if image.dtype == np.uint16 else 1
    return image.astype(np.float32) * np.float32(scale)


def as_uint8(image: np.ndarray) -> np.ndarray:
    """Return an image of 8 or 16 bits as uint8: 16-bit values are divided by 257.

    Example:
        >>> as_uint8(np.array([[[0, 257, 65535]]], np.uint16)).tolist()
        [[[0, 1, 255]]]
    """
    if image.dtype == np.uint8:
        return image
    return np.rint(image * np.float32(1 / _PER_LEVEL)).astype(np.uint8)


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Return an open image as a viewer shows it: (h, w, 3) uint8, turned by its EXIF.

    Transparent pixels are blended with white, and 16-bit grey is scaled by 1 / 257. It
    is converted in bands, because Pillow copies what it converts.

    Raises:
        ValueError: if the image has other numbers than 8 or 16 bits.

    Example:
        >>> upright_rgb(Image.new("L", (4, 3), 9)).shape
        (3, 4, 3)
    """
    image.load()
    # Pillow itself turns TIFF.
    orientation = 1 if image.format == "TIFF" else orientation_of(image)
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, _BAND):
        below = min(y + _BAND, height)
        band = image.crop((0, y, width, below))
        if band.mode.startswith("I"):
            pixels[y:below] = of_16_bits(np.asarray(band))[..., None]
            continue
        if band.mode == "F":
            raise ValueError("mode F has neither 8 nor 16 bits per channel")
        if band.has_transparency_data:
            white = Image.new("RGBA", band.size, "white")
            band = Image.alpha_composite(white, band.convert("RGBA"))
        pixels[y:below] = np.asarray(band.convert("RGB"))
    return np.ascontiguousarray(turned(pixels, orientation))


def of_16_bits(values: np.ndarray) -> np.ndarray:
    """Return numbers of 16 bits, of any type, as uint8."""
    low, high = values.min(), values.max()
    if low < 0 or high > 0xFFFF:
        raise ValueError(f"values from {low} to {high} are not 16 bits")
    return as_uint8(values)


def as_numbers(name: str, value: Any) -> np.ndarray:
    """Return a list, a picture, or a tensor as an array; integers of 0..255 as uint8.

    Args:
        name: of the value, for messages.
        value: anything that NumPy reads.

    Raises:
        ValueError: if it is not an array.
    """
    try:
        array = np.asarray(value)
    except Exception as error:  # of any array library
        kind = type(value).__name__
        raise ValueError(f"{name} of type {kind} is not an array ({error})") from error
    if array.dtype.kind == "i" and array.size and 0 <= array.min() <= array.max() < 256:
        array = array.astype(np.uint8)
    return array


def channel_sums(image: np.ndarray) -> np.ndarray:
    """Return the sum of each channel of (h, w, c), 0..255 scale, as (c,) float64."""
    scale = _PER_LEVEL if image.dtype == np.uint16 else 1
    return image.sum((0, 1), dtype=np.float64) / scale
