"""Reading masks: class ids, colours, or transparency, and the pixels of each.

Source: the formats are those of Pillow, and TIFF as tifffile reads it.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from dilax.data.pixels import (
    UnsuitableError,
    as_stored,
    decoded_by_pillow,
    is_tiff,
    naming,
    open_image,
    orientation_of,
    tag_of,
    turned,
)
from dilax.data.spec import RGB

MaskKind = Literal["ids", "colours", "alpha"]

_MAX_COLOURS = 256
_MAX_WITH_ALPHA = 1 << 16
_PALETTE, _MIN_IS_WHITE = 3, 0  # of TIFF's PhotometricInterpretation
CLEAN = "`dilax data clean MASKS --to FOLDER` writes masks of the main values alone"


class MaskValues(NamedTuple):
    """The values of a mask, and the number of pixels of each.

    Attributes:
        ids: pixels of each class id; None if the mask can only contain colours.
        colours: pixels of each colour; None if the mask can only contain ids.
        palette: the colours of the ids in a palette image, {} in others.
        alpha: pixels of each opacity, {} without transparency.
        clear: colours of pixels that are completely transparent.
        opaque: colours of the other pixels, if there is transparency.
        colourful: whether the file stores colours, even if these are grey.
        jpeg: whether the file is a JPEG.
        inverted: whether viewers show the value 0 of a TIFF as white.
        negative: whether some ids are −1, which counts as 65535.
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


class _Layers(NamedTuple):
    """A mask as its file stores it: `values` or `colours`, and perhaps `alpha`.

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
    """Decode a mask, upright."""
    numbers = _tiff_numbers(path) if is_tiff(path) else None
    if numbers:
        return numbers
    with open_image(path) as file:
        mode, orientation = file.mode, orientation_of(file)
        to_turn = 1 if is_tiff(path) else orientation  # Pillow turns TIFF itself

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
    """Return the numbers that a TIFF stores, of any type; None if they are colours.

    Pillow does not read all types, and it inverts images that viewers show inverted.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        if (count := sum(other.shape == page.shape for other in tiff.pages)) > 1:
            message = f"has {count} pages, and a mask has one; merge them to class ids"
            raise UnsuitableError(message)
        if page.photometric == _PALETTE or page.samplesperpixel > 1:
            return None
        orientation, inverted = tag_of(page), page.photometric == _MIN_IS_WHITE
        try:
            values = page.asarray()
        except ValueError as error:
            values = decoded_by_pillow(path, orientation, error)
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
    """Read a mask.

    Args:
        path: an image file.
        kind: `"ids"`, also of images whose three channels are equal; `"colours"`, also
            of palette images; or `"alpha"`, the opacities as ids.
        threshold: if above 0, ids from this one on become 1, others 0; colours are
            compared by their brightness.
        upright: turn the mask by its orientation, as viewers do.

    Returns:
        (h, w) uint16 ids, or (h, w, 3) uint8 colours.

    Raises:
        ValueError: naming the file, if it is not an image of this kind.
    """
    with naming(path):
        layers = _layers(path)
        if kind == "alpha":
            if layers.alpha is None:
                raise UnsuitableError("has no transparency, unlike other masks")
            layers = _Layers(layers.alpha, orientation=layers.orientation)
        if threshold:
            mask = (_brightness(layers) >= threshold).astype(np.uint16)
        else:
            mask = _colours(layers) if kind == "colours" else _ids(layers)
        return mask if upright else as_stored(mask, layers.orientation)


def mask_values(path: Path, threshold: float = 0.0) -> MaskValues:
    """Count the ids and colours of a mask.

    Args:
        path: an image file.
        threshold: see `read_mask`.

    Raises:
        ValueError: naming the file, if it is not an image, or has too many colours for
            a mask.
    """
    with naming(path):
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
            image = Image.fromarray(np.ascontiguousarray(_colours(layers)))
            counts: Any = image.getcolors(_MAX_COLOURS)
            if counts is None:
                raise UnsuitableError(
                    f"contains more than {_MAX_COLOURS} colours, too many for a mask: "
                    "is it a photograph or a JPEG, or are edges smoothed? Save masks "
                    f"as PNG without smoothing; {CLEAN}"
                )
            colours = {colour: n for n, colour in counts}
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


def _transparency(layers: _Layers) -> dict[str, Any]:
    """Return the fields of `MaskValues` on transparency."""
    every = np.dstack([_colours(layers), np.asarray(layers.alpha)])
    found: Any = Image.fromarray(every).getcolors(_MAX_WITH_ALPHA) or []
    return {
        "alpha": _counted(np.asarray(layers.alpha)),
        "clear": frozenset(c[:3] for _, c in found if c[3] == 0),
        "opaque": frozenset(c[:3] for _, c in found if c[3] > 0),
    }


def _table(layers: _Layers) -> list[RGB]:
    """Return the colour of each of 256 values."""
    white = 255 if layers.values is not None and layers.values.dtype == bool else 1
    levels = layers.palette or [white * i % 256 for i in range(256) for _ in range(3)]
    return [(levels[i], levels[i + 1], levels[i + 2]) for i in range(0, 768, 3)]


def _colours(layers: _Layers) -> np.ndarray:
    """(h, w, 3) uint8."""
    if layers.colours is not None:
        return layers.colours
    values = np.asarray(layers.values)
    if values.dtype not in (bool, np.uint8):
        raise UnsuitableError(f"contains numbers of {values.dtype}, not colours")
    return np.array(_table(layers), np.uint8)[values.astype(np.uint8)]


def _brightness(layers: _Layers) -> np.ndarray:
    """Return (h, w) values, or the brightness of the colours."""
    if layers.values is not None and not layers.palette:
        return layers.values
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(_colours(layers))).convert("L")
    )


def _ids(layers: _Layers) -> np.ndarray:
    """Return (h, w) uint16 ids of a mask; −1 becomes 65535."""
    ids = layers.values
    if ids is None:
        colours = np.asarray(layers.colours)
        if (colours != colours[..., :1]).any():
            raise UnsuitableError("contains colours instead of class ids")
        ids = colours[..., 0]
    if ids.dtype.kind == "f" and (ids != np.floor(ids)).any():
        raise UnsuitableError(
            f"contains fractions from {ids.min():g} to {ids.max():g}, not class ids; "
            "if they are probabilities of an object, --config.data.threshold=0.5"
        )
    if float(ids.min()) < -1 or float(ids.max()) > 65535:
        raise UnsuitableError(
            f"contains ids from {ids.min():g} to {ids.max():g}, not 0 to 65535 (or -1, "
            "which is ignored); save class ids as PNG"
        )
    return ids.astype(np.int64).astype(np.uint16)
