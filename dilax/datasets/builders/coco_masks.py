"""COCO's masks: polygons and run lengths, checked before pycocotools gets them.

Format: https://cocodataset.org/#format-data. Run lengths go down the columns, pixels
outside and inside by turns, outside first. Where they add up to too few pixels,
pycocotools makes a mask of whatever was in memory.
"""

import reprlib
from array import array
from typing import Any

import numpy as np
from pycocotools import mask

_REMEDY = "get the file as COCO publishes it"


def compressed(shape: Any, size: tuple[int, int], where: str) -> bytes:
    """A mask in any of COCO's three forms as compressed run lengths.

    Args:
        shape: polygons `[[x, y, x, y, …], …]`, or `{"size": [h, w], "counts": …}` with
            run lengths as a list or as a compressed text.
        size: (height, width) of the image in pixels.
        where: for the message.

    Raises:
        ValueError: with `where`, the value and what is allowed, if it is none of them
            or does not fit the image.
    """
    if isinstance(shape, list):
        return _from_polygons(shape, size, where)
    if isinstance(shape, dict):
        return _from_run_lengths(shape, size, where)
    raise ValueError(
        f"{where}: the segmentation is {reprlib.repr(shape)}, which is neither "
        f"polygons nor run lengths; {_REMEDY}"
    )


def area(runs: bytes, size: tuple[int, int]) -> int:
    """Pixels inside a mask."""
    return int(mask.area({"size": size, "counts": runs}))


def inside(runs: bytes, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: whether pixels are inside a mask."""
    return mask.decode({"size": size, "counts": runs}).view(bool)


def packed_ring(ring: Any) -> Any:
    """A polygon's numbers in a quarter of the memory; anything else as it is."""
    try:
        return array("d", ring)
    except (TypeError, OverflowError):
        return ring


def _from_polygons(rings: list, size: tuple[int, int], where: str) -> bytes:
    rings = [packed_ring(ring) for ring in rings]
    if wrong := [ring for ring in rings if not _is_polygon(ring, 2 * max(size))]:
        raise ValueError(
            f"{where}: {reprlib.repr(wrong[0])} is no polygon [x, y, x, y, …] of three "
            f"points or more in an image of {[*size]} pixels; {_REMEDY}"
        )
    if not rings:
        raise ValueError(f"{where}: the segmentation has no polygon; {_REMEDY}")
    return mask.merge(mask.frPyObjects(rings, *size))["counts"]


def _is_polygon(ring: Any, farthest: int) -> bool:
    """Whether there are points, and none as far out as only mistakes are, or NaN."""
    points = isinstance(ring, array) and len(ring) > 5 and len(ring) % 2 == 0
    return points and bool(np.abs(ring).max() <= farthest)


def _from_run_lengths(shape: dict, size: tuple[int, int], where: str) -> bytes:
    if shape.get("size") != [*size]:
        raise ValueError(
            f"{where}: the run lengths are of {shape.get('size')} pixels, the image "
            f"has {[*size]}; {_REMEDY}"
        )
    counts = shape.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not _covers(runs, size[0] * size[1]):
        raise ValueError(
            f"{where}: the run lengths {reprlib.repr(counts)} do not add up to the "
            f"{size[0] * size[1]} pixels of the image; {_REMEDY}"
        )
    return mask.frPyObjects({"size": size, "counts": runs}, *size)["counts"]


def _covers(runs: Any, pixels: int) -> bool:
    return (
        isinstance(runs, list)
        and all(isinstance(run, int) and run >= 0 for run in runs)
        and sum(runs) == pixels
    )


def _unpacked(text: str) -> list[int]:
    """The run lengths in a compressed text; none if it is not whole.

    A character is 6 bits above "0": 5 of a number, the lowest first, and whether more
    of it follow. Numbers are signed; from the fourth on they are differences from the
    one before the last.

    Example:
        >>> _unpacked("4:21")
        [4, 10, 2, 11]
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64:
            return []
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            sign = (bits & 16) and 1 << shift
            runs.append(number - sign + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return [] if shift else runs
