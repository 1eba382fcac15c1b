"""Masks: ids, colours, or transparency, the pixels of each, and cleaning.

Cleaning removes the values that JPEG and smooth edges leave between classes.

Source: the formats are those of Pillow, and TIFF as tifffile reads it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
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

VOID_IDS = (255, 65535)
_MAX_COLOURS = 256
_MAX_WITH_ALPHA = 1 << 16
_NEAR = 24.0  # of 255: JPEG at usual qualities changes flat areas by less
_MIN_SHARE = 0.005
_PALETTE, _MIN_IS_WHITE = 3, 0  # of TIFF's PhotometricInterpretation
CLEAN = (
    "`dilax data clean MASKS --to FOLDER` writes masks that have only the main values"
)


class MaskReading(NamedTuple):
    """The user's choices for reading masks.

    Attributes:
        kind: what they contain; "" detects it.
        threshold: values from here on are 1, others 0; 0 keeps the values.
        void: ids that are ignored, `"255"` or `"0,11"`; `"none"` ignores none; ""
            ignores 255, or 65535, if the other ids leave no doubt.
    """

    kind: MaskKind | Literal[""] = ""
    threshold: float = 0.0
    void: str = ""

    def void_ids(self, found: Iterable[int]) -> tuple[set[int], bool]:
        """Return which ids are ignored, and whether the user has decided on 255.

        Raises:
            ValueError: naming the flag, if `void` has another form.
        """
        words = re.findall(r"[^\s,()]+", self.void.lower())
        if not all(word.isdigit() or word == "none" for word in words):
            raise ValueError(
                f"--config.data.void={self.void}: must be ids such as 0,255, or none"
            )
        void = {int(word) for word in words if word != "none"}
        decided = "none" in words or not void.isdisjoint(VOID_IDS)
        return void | (set() if decided else {*VOID_IDS} & {*found}), decided


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


class _Stored(NamedTuple):
    """A mask as its file stores it, but upright.

    Attributes:
        pixels: (h, w) numbers, or (h, w, 3) uint8 colours.
        alpha: (h, w) uint8.
        palette: red, green, blue, red, … of the numbers.
        orientation: of the file.
        jpeg: whether it is a JPEG.
        inverted: whether viewers show 0 as white.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    palette: Sequence[int] = ()
    orientation: int = 1
    jpeg: bool = False
    inverted: bool = False

    @property
    def has_bytes(self) -> bool:
        """Whether each pixel is a number below 256."""
        return self.pixels.ndim == 2 and self.pixels.dtype in (bool, np.uint8)

    def table(self) -> list[RGB]:
        """Return the colour of each of 256 numbers."""
        white = 255 if self.pixels.dtype == bool else 1
        levels = self.palette or [white * i % 256 for i in range(256) for _ in range(3)]
        return [(levels[i], levels[i + 1], levels[i + 2]) for i in range(0, 768, 3)]

    def colours(self) -> np.ndarray:
        """Return (h, w, 3) uint8."""
        if self.pixels.ndim == 3:
            return self.pixels
        if not self.has_bytes:
            raise UnsuitableError(
                f"contains numbers of {self.pixels.dtype}, not colours"
            )
        return np.array(self.table(), np.uint8)[self.pixels.astype(np.uint8)]

    def brightness(self) -> np.ndarray:
        """Return (h, w) numbers, or the brightness of the colours."""
        if self.pixels.ndim == 2 and not self.palette:
            return self.pixels
        colours = np.ascontiguousarray(self.colours())
        return np.asarray(Image.fromarray(colours).convert("L"))

    def ids(self) -> np.ndarray:
        """Return (h, w) uint16 ids; −1 becomes 65535."""
        ids = self.pixels
        if ids.ndim == 3:
            if (ids != ids[..., :1]).any():
                raise UnsuitableError("contains colours instead of class ids")
            ids = ids[..., 0]
        if ids.dtype.kind == "f" and (ids != np.floor(ids)).any():
            raise UnsuitableError(
                f"contains fractions from {ids.min():g} to {ids.max():g}, not class "
                "ids; if they are probabilities of an object, "
                "--config.data.threshold=0.5"
            )
        if float(ids.min()) < -1 or float(ids.max()) > 65535:
            raise UnsuitableError(
                f"contains ids from {ids.min():g} to {ids.max():g}, not 0 to 65535 (or "
                "-1, which is ignored); save class ids as PNG"
            )
        return ids.astype(np.int64).astype(np.uint16)


def _stored(path: Path) -> _Stored:
    if is_tiff(path):
        # Pillow does not read all numbers, and inverts what viewers show inverted.
        import tifffile  # here, because it takes long

        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages.first
            count = sum(other.shape == page.shape for other in tiff.pages)
            if count > 1:
                raise UnsuitableError(
                    f"has {count} pages, and a mask has one; merge them to class ids"
                )
            if page.photometric != _PALETTE and page.samplesperpixel == 1:
                orientation = tag_of(page)
                inverted = page.photometric == _MIN_IS_WHITE
                try:
                    pixels = page.asarray()
                except ValueError as error:
                    pixels = decoded_by_pillow(path, orientation, error)
                    if inverted:
                        pixels = ~pixels if pixels.dtype == bool else 255 - pixels
                pixels = turned(pixels, orientation)
                return _Stored(pixels, orientation=orientation, inverted=inverted)
    with open_image(path) as file:
        mode, orientation = file.mode, orientation_of(file)
        to_turn = 1 if is_tiff(path) else orientation  # Pillow turns TIFF itself

        def shown(image: Image.Image) -> np.ndarray:
            return turned(np.asarray(image), to_turn)

        if mode == "LA":
            pixels = shown(file.getchannel("L"))
        else:
            numbers = mode in ("1", "L", "P") or mode[0] in "IF"
            pixels = shown(file if numbers else file.convert("RGB"))
        return _Stored(
            pixels,
            shown(file.getchannel("A")) if "A" in file.getbands() else None,
            (file.getpalette() or []) + 768 * [0] if mode == "P" else (),
            orientation,
            jpeg=file.format in ("JPEG", "MPO"),
        )


def read_mask(
    path: Path, kind: MaskKind = "ids", threshold: float = 0.0, upright: bool = True
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
        stored = _stored(path)
        if kind == "alpha":
            if stored.alpha is None:
                raise UnsuitableError("has no transparency, unlike other masks")
            stored = _Stored(stored.alpha, orientation=stored.orientation)
        if threshold:
            mask = (stored.brightness() >= threshold).astype(np.uint16)
        else:
            mask = stored.colours() if kind == "colours" else stored.ids()
        return mask if upright else as_stored(mask, stored.orientation)


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
        stored = _stored(path)
        seen: dict[str, Any] = {"jpeg": stored.jpeg, "inverted": stored.inverted}
        if (alpha := stored.alpha) is not None:
            every = np.dstack([stored.colours(), alpha])
            found = _count_colours(every, _MAX_WITH_ALPHA) or {}
            seen["clear"] = frozenset(c[:3] for c in found if c[3] == 0)
            seen["opaque"] = frozenset(c[:3] for c in found if c[3] > 0)
            seen["alpha"] = _count_ids(alpha >= threshold if threshold else alpha)
        if threshold:
            bright = _count_ids(stored.brightness() >= threshold)
            return MaskValues(bright, None, **seen)
        if stored.pixels.ndim == 3:
            colours = _count_colours(stored.pixels, _MAX_COLOURS)
            if colours is None:
                raise UnsuitableError(
                    f"contains more than {_MAX_COLOURS} colours, too many for a mask: "
                    "is it a photograph or a JPEG, or are edges smoothed? Save masks "
                    f"as PNG without smoothing; {CLEAN}"
                )
            grey = all(r == g == b for r, g, b in colours)
            levels = {r: n for (r, _, _), n in colours.items()} if grey else None
            return MaskValues(levels, colours, colourful=True, **seen)
        ids = _count_ids(stored.ids())
        if not stored.has_bytes:
            return MaskValues(ids, None, negative=bool(stored.pixels.min() < 0), **seen)
        table, counts = stored.table(), Counter[RGB]()
        for i, n in ids.items():
            counts[table[i]] += n
        palette = {i: table[i] for i in ids} if stored.palette else {}
        return MaskValues(ids, dict(counts), palette, **seen)


def _count_ids(values: np.ndarray) -> dict[int, int]:
    counts = np.bincount(values.ravel())
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


def _count_colours(pixels: np.ndarray, most: int) -> dict[Any, int] | None:
    """Return the pixels of each colour; None if there are more than `most` colours."""
    found: Any = Image.fromarray(np.ascontiguousarray(pixels)).getcolors(most)
    return None if found is None else {colour: n for n, colour in found}


def main_colours(paths: Sequence[Path]) -> dict[RGB, float]:
    """Return the main colours of masks, with the share of the pixels near each.

    A pixel is near a colour if it differs by less than 24 in all channels; colours with
    less than 0.5 % of the pixels near them do not count.

    Raises:
        ValueError: naming the file, if it is not an image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.png")
        ...     Image.fromarray(np.array([[0, 1, 0, 255]], np.uint8)).save(path)
        ...     main_colours([path])
        {(0, 0, 0): 0.75, (255, 255, 255): 0.25}
    """
    counts = Counter[RGB]()
    for path in paths:
        mask = read_mask(path, "colours")
        counts.update(_count_colours(mask, mask[..., 0].size) or {})
    colours = np.array([*counts])
    left = np.array([*counts.values()], float)
    total, shares = left.sum(), {}
    while left.max() > 0:
        colour = colours[left.argmax()]
        near = np.abs(colours - colour).max(1) < _NEAR
        share = left[near].sum() / total
        left[near] = 0
        if share >= _MIN_SHARE:
            r, g, b = colour.tolist()
            shares[r, g, b] = float(share)
    return shares


def cleaned(mask: np.ndarray, colours: Sequence[RGB]) -> np.ndarray:
    """Return a mask (h, w, 3) that has only these colours.

    Pixels near one of the colours take it; other pixels take the colour of the nearest
    such pixel, so that an edge between two classes does not become a third class.
    """
    from scipy.ndimage import distance_transform_edt  # only `dilax data clean` needs it

    table = np.array(colours, np.uint8)
    difference = np.abs(mask[:, :, None].astype(np.int16) - table).max(-1)
    ids = difference.argmin(-1)
    unclear = difference.min(-1) >= _NEAR
    if unclear.any() and not unclear.all():
        places = distance_transform_edt(
            unclear, return_distances=False, return_indices=True
        )
        ids = ids[tuple(places)]
    return table[ids]


def clean_masks(paths: Sequence[Path], output: Path, colours: Sequence[RGB]) -> None:
    """Write masks that have only these colours, as PNG files of the same names.

    The masks are grey if all colours are, otherwise RGB.

    Raises:
        ValueError: naming the file, if it is not an image, or if two have the same
            name.
        OSError: if a file cannot be written.
    """
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{paths[0].parent}: some masks differ only in their suffix")
    output.mkdir(parents=True, exist_ok=True)
    grey = all(r == g == b for r, g, b in colours)
    for path in paths:
        mask = cleaned(read_mask(path, "colours"), colours)
        image = Image.fromarray(np.ascontiguousarray(mask[..., 0] if grey else mask))
        image.save(output / f"{path.stem}.png")
