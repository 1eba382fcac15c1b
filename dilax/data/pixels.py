"""Image files as arrays: images of any channels, masks of class ids or of colours.

Source: the formats are those of Pillow, and TIFF as tifffile reads it.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dilax.data.spec import RGB

MaskKind = Literal["ids", "colours", "alpha"]

_MAX_COLOURS = 256
_MAX_WITH_ALPHA = 1 << 16
_CONVERT = "convert it to uint8 or uint16"
_PER_LEVEL = 257  # 65535 / 255: 16-bit values per 8-bit value
_PALETTE, _MIN_IS_WHITE = 3, 0  # of TIFF's PhotometricInterpretation
_CLEAN = "`dilax data clean MASKS --to FOLDER` writes masks of the main values alone"


class _UnsuitableError(ValueError):
    """A file is an image, but not of the required kind."""


class Header(NamedTuple):
    """What an image file contains.

    Attributes:
        size: (height, width) in pixels, upright.
        channels: as `read_pixels` returns them.
        bits: of each channel, 8 or 16.
        orientation: of EXIF or TIFF, 1 to 8; 1 is stored upright.
    """

    size: tuple[int, int]
    channels: int
    bits: int
    orientation: int = 1


class MaskValues(NamedTuple):
    """What a mask contains, and how many pixels of each.

    Attributes:
        ids: pixels of each class id; None if the mask can only hold colours.
        colours: pixels of each colour; None if the mask can only hold ids.
        palette: the colours of the ids in a palette image, {} in others.
        alpha: pixels of each opacity, {} without transparency.
        clear: colours of pixels that are wholly transparent.
        opaque: colours of other pixels, where there is transparency.
        colourful: whether the file is of colours, though they may be grey.
        jpeg: whether the file is a JPEG.
        inverted: whether viewers show the value 0 of a TIFF as white.
        negative: whether some ids are −1, which count as 65535.
    """

    ids: dict[int, int] | None
    colours: dict[RGB, int] | None
    palette: dict[int, RGB] = {}
    alpha: dict[int, int] = {}
    clear: frozenset[RGB] = frozenset()
    opaque: frozenset[RGB] = frozenset()
    colourful: bool = False
    jpeg: bool = False
    inverted: bool = False
    negative: bool = False


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


def open_image(file: Path | bytes) -> Image.Image:
    """Opens an image file or its content, also HEIC if pillow-heif is installed.

    Raises:
        ValueError: if it is HEIC, and pillow-heif is missing.
        UnidentifiedImageError: if it is not an image.
    """
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except UnidentifiedImageError:
        start = file if isinstance(file, bytes) else _start_of(file)
        if start[4:8] != b"ftyp" or start[8:12] not in (b"heic", b"heix", b"mif1"):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        message = "HEIC is read by pillow-heif: pip install 'dilax[heif]'"
        raise _UnsuitableError(message) from error
    register_heif_opener()
    return open_image(file)


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(12)


def orientation_of(file: Image.Image) -> int:
    """How an open image is stored: its EXIF orientation, 1 to 8.

    What is missing, broken or out of range counts as 1, upright.
    """
    try:
        opened: Any = file
        if file.format == "PNG" and isinstance(opened.fp, io.BufferedReader):
            # Pillow would decode the pixels first, as EXIF may come after them.
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
    """The EXIF that a PNG may have after its pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, io.SEEK_CUR)  # a checksum follows
    return b""


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (h, w, …) as viewers show them.

    Example:
        >>> turned(np.array([[1, 2]]), 6).tolist()
        [[1], [2]]
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # Each is a transposition, or not, and then flips of rows and of columns.
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def read_header(path: Path) -> Header:
    """Reads the header of an image file, and no pixels.

    Raises:
        ValueError: naming the file, if it is not an image of 8 or 16 bits per channel.
    """
    with _naming(path):
        if not _is_tiff(path):
            with open_image(path) as file:
                channels, bits = {"L": (1, 8), "I;16": (1, 16)}.get(_mode(file), (3, 8))
                orientation = orientation_of(file)
                size = _shown(file.height, file.width, orientation)
                return Header(size, channels, bits, orientation)
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            series, orientation = tiff.series[0], _tag(tiff.pages.first)
            axis = _channel_axis(series)
            height, width = (n for i, n in enumerate(series.shape) if i != axis)
            channels = 1 if axis is None else series.shape[axis]
            size = _shown(height, width, orientation)
            return Header(size, channels, 8 * series.dtype.itemsize, orientation)


def _shown(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if orientation >= 5 else (height, width)


def read_size(path: Path) -> tuple[tuple[int, int], int]:
    """((height, width) upright, orientation 1 to 8) of an image, from its header.

    Raises:
        ValueError: naming the file, if it is not an image.
    """
    with _naming(path):
        if _is_tiff(path):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                page: Any = tiff.pages.first
                orientation = _tag(page)
                size = _shown(page.imagelength, page.imagewidth, orientation)
        else:
            with open_image(path) as file:
                orientation = orientation_of(file)
                size = _shown(file.height, file.width, orientation)
        return size, orientation


def _tag(page: Any) -> int:
    """The orientation of a page of a TIFF."""
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag and tag.value in range(1, 9) else 1


def read_pixels(
    path: Path, channels: int | None = None, upright: bool = True
) -> np.ndarray:
    """Reads an image as (h, w, c), uint8 or uint16, with the channels that it has.

    TIFF keeps all its channels and bits. In other formats transparency is dropped, and
    16-bit colour images keep their upper 8 bits.

    Args:
        path: the file.
        channels: number to return; 3 makes RGB of grey and transparent images.
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
    with _naming(path):
        if _is_tiff(path):
            pixels, orientation = _tiff_pixels(path)
        else:
            with open_image(path) as file:
                mode = _mode(file)
                orientation = orientation_of(file)
                if mode == "I;16":
                    pixels = np.asarray(file).astype(np.uint16)[..., None]
                else:
                    pixels = np.atleast_3d(np.asarray(file.convert(mode)))
        if upright and orientation > 1:
            pixels = np.ascontiguousarray(turned(pixels, orientation))
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
        raise _UnsuitableError(
            f"mode {file.mode} is neither 8 nor 16 bits per channel; {_CONVERT}"
        )
    return "RGB"


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in (".tif", ".tiff")


def _tiff_pixels(path: Path) -> tuple[np.ndarray, int]:
    """(h, w, c) as stored, and the orientation."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series, orientation = tiff.series[0], _tag(tiff.pages.first)
        axis = _channel_axis(series)
        try:
            pixels = series.asarray()
        except ValueError as error:
            pixels = _decoded_by_pillow(path, orientation, error)
            if (pixels.shape, pixels.dtype) != (series.shape, series.dtype):
                raise _UnsuitableError(f"{error}: pip install imagecodecs") from error
    shaped = pixels[..., None] if axis is None else np.moveaxis(pixels, axis, -1)
    return shaped, orientation


def _decoded_by_pillow(path: Path, orientation: int, error: ValueError) -> np.ndarray:
    """The pixels of a TIFF as stored, where tifffile lacks their compression.

    tifffile leaves most compressions to a package that may be missing.
    """
    if "imagecodecs" not in str(error):
        raise error
    with Image.open(path) as file:
        return _as_stored(np.asarray(file), orientation)


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes `turned`: 6 and 8 undo each other, the others themselves."""
    return turned(upright, {6: 8, 8: 6}.get(orientation, orientation))


def _channel_axis(series: Any) -> int | None:
    """The axis of the channels: the one that is named so, or else the shortest."""
    shape, axes = series.shape, series.axes
    if len(shape) not in (2, 3) or series.dtype not in (np.uint8, np.uint16):
        raise _UnsuitableError(
            f"{axes} {shape} {series.dtype} is not an image of 8 or 16 bits; {_CONVERT}"
        )
    if len(shape) == 2:
        return None
    named = [axes.index(name) for name in "SC" if name in axes]
    return named[0] if named else int(np.argmin(shape))


class _Layers(NamedTuple):
    """A mask as its file holds it: `values` or `colours`, and perhaps `alpha`.

    Attributes:
        values: (h, w) numbers.
        colours: (h, w, 3) uint8.
        alpha: (h, w) uint8.
        palette: red, green, blue, red, … of the values.
        orientation: of the file; the arrays are upright.
        jpeg: whether it is a JPEG.
        inverted: whether viewers show 0 as white.
    """

    values: np.ndarray | None
    colours: np.ndarray | None = None
    alpha: np.ndarray | None = None
    palette: list[int] | None = None
    orientation: int = 1
    jpeg: bool = False
    inverted: bool = False


def _layers(path: Path) -> _Layers:
    """Decodes a mask, upright."""
    numbers = _tiff_numbers(path) if _is_tiff(path) else None
    if numbers:
        return numbers
    with open_image(path) as file:
        mode, orientation = file.mode, orientation_of(file)
        to_turn = 1 if _is_tiff(path) else orientation  # Pillow turns TIFF itself

        def shown(image: Image.Image) -> np.ndarray:
            return turned(np.asarray(image), to_turn)

        values = colours = alpha = palette = None
        if mode in ("1", "L", "P") or mode[0] in "IF":
            values = shown(file)
        elif mode == "LA":
            values = shown(file.getchannel("L"))
        else:
            colours = shown(file.convert("RGB"))
        if "A" in file.getbands():
            alpha = shown(file.getchannel("A"))
        if mode == "P":
            palette = (file.getpalette() or []) + 768 * [0]
        jpeg = file.format in ("JPEG", "MPO")
        return _Layers(values, colours, alpha, palette, orientation, jpeg)


def _tiff_numbers(path: Path) -> _Layers | None:
    """The numbers that a TIFF stores, of any type; None if they are colours.

    Pillow does not read all types, and it inverts what viewers show inverted.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        if (count := sum(other.shape == page.shape for other in tiff.pages)) > 1:
            message = f"has {count} pages, and a mask has one; merge them to class ids"
            raise _UnsuitableError(message)
        if page.photometric == _PALETTE or page.samplesperpixel > 1:
            return None
        orientation, inverted = _tag(page), page.photometric == _MIN_IS_WHITE
        try:
            values = page.asarray()
        except ValueError as error:
            values = _decoded_by_pillow(path, orientation, error)
            if inverted:
                values = ~values if values.dtype == bool else 255 - values
    return _Layers(
        turned(values, orientation), orientation=orientation, inverted=inverted
    )


def read_mask(
    path: Path,
    kind: MaskKind = "ids",
    threshold: float = 0.0,
    upright: bool = True,
) -> np.ndarray:
    """Reads a mask.

    Args:
        path: an image file.
        kind: `"ids"`, also of images whose three channels are equal; `"colours"`, also
            of palette images; or `"alpha"`, the opacities as ids.
        threshold: ids from here on become 1, others 0, where it is above 0; colours
            count by their brightness.
        upright: turn the mask by its orientation, as viewers do.

    Returns:
        (h, w) uint16 ids, or (h, w, 3) uint8 colours.

    Raises:
        ValueError: naming the file, if it is not an image, or not of that kind.
    """
    with _naming(path):
        layers = _layers(path)
        if kind == "alpha":
            if layers.alpha is None:
                raise _UnsuitableError("has no transparency, unlike other masks")
            layers = _Layers(layers.alpha, orientation=layers.orientation)
        if threshold:
            mask = (_brightness(layers) >= threshold).astype(np.uint16)
        else:
            mask = _colours(layers) if kind == "colours" else _ids(layers)
        return mask if upright else _as_stored(mask, layers.orientation)


def mask_values(path: Path, threshold: float = 0.0) -> MaskValues:
    """Counts the ids and colours of a mask.

    Args:
        path: an image file.
        threshold: see `read_mask`.

    Raises:
        ValueError: naming the file, if it is not an image, or holds too many colours
            for a mask.
    """
    with _naming(path):
        layers = _layers(path)
        seen: dict[str, Any] = {"jpeg": layers.jpeg, "inverted": layers.inverted}
        if layers.alpha is not None:
            seen |= _transparency(layers)
        if threshold:
            if layers.alpha is not None:
                seen["alpha"] = _counted(np.asarray(layers.alpha >= threshold))
            bright = _counted(_brightness(layers) >= threshold)
            return MaskValues(bright, None, **seen)
        if layers.values is None:
            colours = _counted_colours(layers.colours)
            grey = all(r == g == b for r, g, b in colours)
            levels = {r: n for (r, _, _), n in colours.items()} if grey else None
            return MaskValues(levels, colours, colourful=True, **seen)
        ids = _counted(_ids(layers))
        if layers.values.dtype not in (bool, np.uint8):
            seen["negative"] = bool(layers.values.min() < 0)
            return MaskValues(ids, None, **seen)
        table = _table(layers)
        palette = {i: table[i] for i in ids}
        counted = Counter[RGB]()
        for i, n in ids.items():
            counted[palette[i]] += n
        own = palette if layers.palette else {}
        return MaskValues(ids, dict(counted), own, **seen)


def _counted(values: np.ndarray) -> dict[int, int]:
    counts = np.bincount(values.ravel())
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


def _counted_colours(pixels: Any) -> dict[RGB, int]:
    found = Image.fromarray(np.ascontiguousarray(pixels)).getcolors(_MAX_COLOURS)
    if found is None:
        raise _UnsuitableError(
            f"holds more than {_MAX_COLOURS} colours, too many for a mask: is it a "
            "photograph or a JPEG, or are edges smoothed? Save masks as PNG without "
            f"smoothing; {_CLEAN}"
        )
    return {(r, g, b): n for n, (r, g, b) in found}  # type: ignore[misc]


def _transparency(layers: _Layers) -> dict[str, Any]:
    """What `MaskValues` says about transparency."""
    every = np.dstack([_colours(layers), np.asarray(layers.alpha)])
    found: Any = Image.fromarray(every).getcolors(_MAX_WITH_ALPHA) or []
    return {
        "alpha": _counted(np.asarray(layers.alpha)),
        "clear": frozenset(c[:3] for _, c in found if c[3] == 0),
        "opaque": frozenset(c[:3] for _, c in found if c[3] > 0),
    }


def _table(layers: _Layers) -> list[RGB]:
    """The colour of each of 256 values."""
    white = 255 if layers.values is not None and layers.values.dtype == bool else 1
    levels = layers.palette or [white * i % 256 for i in range(256) for _ in range(3)]
    return [(levels[i], levels[i + 1], levels[i + 2]) for i in range(0, 768, 3)]


def _colours(layers: _Layers) -> np.ndarray:
    """(h, w, 3) uint8."""
    if layers.colours is not None:
        return layers.colours
    values = np.asarray(layers.values)
    if values.dtype not in (bool, np.uint8):
        raise _UnsuitableError(f"holds numbers of {values.dtype}, not colours")
    return np.array(_table(layers), np.uint8)[values.astype(np.uint8)]


def _brightness(layers: _Layers) -> np.ndarray:
    """(h, w) values, or those of the colours."""
    if layers.values is not None and not layers.palette:
        return layers.values
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(_colours(layers))).convert("L")
    )


def _ids(layers: _Layers) -> np.ndarray:
    """(h, w) uint16 ids of a mask; −1 becomes 65535."""
    ids = layers.values
    if ids is None:
        colours = np.asarray(layers.colours)
        if (colours != colours[..., :1]).any():
            raise _UnsuitableError("holds colours instead of class ids")
        ids = colours[..., 0]
    if ids.dtype.kind == "f" and (ids != np.floor(ids)).any():
        raise _UnsuitableError(
            f"holds fractions from {ids.min():g} to {ids.max():g}, not class ids; if "
            "they are probabilities of an object, --config.data.threshold=0.5"
        )
    if float(ids.min()) < -1 or float(ids.max()) > 65535:
        raise _UnsuitableError(
            f"holds ids from {ids.min():g} to {ids.max():g}, not 0 to 65535 (or -1, "
            "which is ignored); save class ids as PNG"
        )
    return ids.astype(np.int64).astype(np.uint16)


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
