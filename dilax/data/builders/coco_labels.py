"""COCO's annotations as labels of VOC's classes: objects to paint, segments to look up.

Format: https://cocodataset.org/#format-data. A JSON file takes half a gigabyte; of
each image, only what its label is made of is kept.

COCO's masks: polygons and run lengths, checked before pycocotools gets them.

Format: https://cocodataset.org/#format-data. Run lengths go down the columns, pixels
outside and inside by turns, outside first. Where they add up to too few pixels,
pycocotools makes a mask of whatever was in memory.
"""

import json
import reprlib
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask
from tqdm import tqdm

from dilax.data.builders.archives import Tree
from dilax.data.builders.builder import decoded
from dilax.data.spec import COCO, RGB, ids_of_colours

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


_IGNORE = COCO.ignore_label
_SEGMENT_IDS = 1 << 24  # what the three bytes of a pixel can say
_RENAMED = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}


class Objects(NamedTuple):
    """The objects of VOC's categories in an image.

    Attributes:
        size: (height, width) of the image in pixels.
        painted: (class or ignore label, compressed run lengths) in the order in which
            they are painted: crowds, then objects from the largest to the smallest.
    """

    size: tuple[int, int]
    painted: tuple[tuple[int, bytes], ...]

    @property
    def has_single(self) -> bool:
        """Whether one of them is no crowd."""
        return any(label != _IGNORE for label, _ in self.painted)

    def paint(self) -> np.ndarray:
        """(h, w) uint8 classes; ignore where there is nothing but a crowd."""
        canvas = np.zeros(self.size, np.uint8, order="F")
        for label, runs in self.painted:
            canvas[inside(runs, self.size)] = label
        return np.ascontiguousarray(canvas)


class Segments(NamedTuple):
    """The segments of an image.

    Attributes:
        file: the PNG of segment ids, without its folder.
        labels: (segment id, class or ignore label) pairs.
    """

    file: str
    labels: tuple[tuple[int, int], ...]

    @property
    def has_single(self) -> bool:
        """Whether one of them is of VOC's categories and no crowd."""
        return any(0 < label < _IGNORE for _, label in self.labels)

    def paint(self, tree: Tree, file: str) -> np.ndarray:
        """(h, w) uint8 classes; ignore where pixels are unlabelled or of a crowd.

        Raises:
            ValueError: naming the file, if it is no RGB image, or has segments that the
                JSON does not list.
        """
        image = decoded(tree.read(file), file)
        if image.mode != "RGB":
            raise ValueError(f"{file}: is not an RGB image of ids but of {image.mode}")
        labels = {_colour(0): _IGNORE} | {_colour(i): label for i, label in self.labels}
        try:
            return ids_of_colours(np.asarray(image), labels, file)
        except ValueError as error:
            raise ValueError(
                f"{error}; segments_info does not list these segments, whose ids are "
                "R + 256 G + 65536 B"
            ) from error


def read_objects(tree: Tree, name: str) -> dict[str, Objects]:
    """The objects in each image that an instances JSON lists, by image file.

    Raises:
        ValueError: naming the file and the entry, if something in it is not as COCO
            documents it.
    """
    content = _parsed(tree, name)
    images, classes = _images(content, name), _classes(content, name)
    painted: dict[int, list[tuple[int, bytes]]] = {number: [] for number in images}
    for entry in _annotations(content, name):
        number, where = _image(entry, images, name), _named(entry, name)
        if label := _label(entry, classes, where):
            shape, size = entry.get("segmentation"), _size(images[number])
            runs = compressed(shape, size, where)
            painted[number].append((label, runs))
    return {
        image["file_name"]: Objects(
            _size(image), _ordered(painted[number], _size(image))
        )
        for number, image in images.items()
    }


def read_segments(tree: Tree, name: str) -> dict[str, Segments]:
    """The segments of each image that a panoptic JSON annotates, by image file.

    Raises:
        ValueError: naming the file and the entry, if something in it is not as COCO
            documents it.
    """
    content = _parsed(tree, name)
    images, classes = _images(content, name), _classes(content, name)
    found = {}
    for entry in _annotations(content, name):
        file = _value(entry, "file_name", str, name)
        where = f"{name}: {file}"
        labels = tuple(
            (_segment(one, where), _label(one, classes, where))
            for one in _value(entry, "segments_info", list, where)
        )
        image = images[_image(entry, images, name)]
        found[image["file_name"]] = Segments(file, labels)
    return found


def _parsed(tree: Tree, name: str) -> Any:
    content = tree.read(name)
    try:
        return json.loads(content, object_hook=_packed)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name}: is no whole JSON file ({error}); {_REMEDY}"
        ) from error


def _packed(entry: dict) -> dict:
    """Packs polygons as they are parsed; all of them as lists take 1 GB more."""
    if isinstance(rings := entry.get("segmentation"), list):
        entry["segmentation"] = [packed_ring(ring) for ring in rings]
        entry.pop("bbox", None)
    return entry


def _value(entry: Any, key: str, kind: type, where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise ValueError(
            f"{where}: {key!r} is {reprlib.repr(value)} where {kind.__name__} is "
            f"expected, in {reprlib.repr(entry)}; {_REMEDY}"
        )
    return value


def _named(entry: dict, name: str) -> str:
    return f"{name}: annotation {entry.get('id')}"


def _images(content: Any, name: str) -> dict[int, dict]:
    """The listed images by their numbers."""
    images = {}
    for entry in _value(content, "images", list, name):
        images[_value(entry, "id", int, name)] = entry
        file = _value(entry, "file_name", str, name)
        for side in ("height", "width"):
            if _value(entry, side, int, f"{name}: {file}") < 1:
                raise ValueError(f"{name}: {file}: {side} is {entry[side]}; {_REMEDY}")
    return images


def _size(image: dict) -> tuple[int, int]:
    return image["height"], image["width"]


def _classes(content: Any, name: str) -> dict[int, int]:
    """The class of each category's number: VOC's, or 0 if VOC has none."""
    classes = {}
    for entry in _value(content, "categories", list, name):
        category = _value(entry, "name", str, name)
        category = _RENAMED.get(category, category)
        known = category in COCO.classes and entry.get("isthing", 1)
        number = _value(entry, "id", int, name)
        classes[number] = COCO.classes.index(category) if known else 0
    if missing := set(range(1, COCO.num_classes)) - set(classes.values()):
        names = ", ".join(COCO.classes[i] for i in sorted(missing))
        raise ValueError(f"{name}: has no category for {names}; {_REMEDY}")
    return classes


def _annotations(content: Any, name: str) -> Iterable[dict]:
    entries = _value(content, "annotations", list, name)
    return tqdm(entries, f"read {Path(name).name}", unit="entry", leave=False, delay=2)


def _image(entry: Any, images: Mapping[int, dict], name: str) -> int:
    number = _value(entry, "image_id", int, name)
    if number not in images:
        raise ValueError(
            f"{_named(entry, name)}: is of image {number}, which is not listed; "
            f"{_REMEDY}"
        )
    return number


def _label(entry: Any, classes: Mapping[int, int], where: str) -> int:
    """The class, 0 for other categories, ignore for crowds of VOC's."""
    category = _value(entry, "category_id", int, where)
    if category not in classes:
        raise ValueError(f"{where}: category {category} is not listed; {_REMEDY}")
    crowd = _value(entry, "iscrowd", int, where)
    return _IGNORE if crowd and classes[category] else classes[category]


def _segment(entry: Any, where: str) -> int:
    number = _value(entry, "id", int, where)
    if not 0 < number < _SEGMENT_IDS:
        raise ValueError(
            f"{where}: segment id {number} is none of 1 … {_SEGMENT_IDS - 1}; {_REMEDY}"
        )
    return number


def _colour(segment: int) -> RGB:
    return segment & 255, segment >> 8 & 255, segment >> 16


def _ordered(
    painted: list[tuple[int, bytes]], size: tuple[int, int]
) -> tuple[tuple[int, bytes], ...]:
    """Crowds first, then from the largest to the smallest."""
    return tuple(sorted(painted, key=lambda p: (p[0] != _IGNORE, -area(p[1], size))))
