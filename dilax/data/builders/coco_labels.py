"""COCO's annotations as labels of VOC's classes: objects to paint, segments to look up.

Format: https://cocodataset.org/#format-data. A JSON file takes half a gigabyte; only
    the
parts that the labels need are kept. Masks are checked before pycocotools reads them,
because it returns uninitialized memory if run lengths add up to too few pixels.
"""

import json
import reprlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask
from tqdm import tqdm

from dilax.data.builders.archives import Tree
from dilax.data.builders.builder import decoded
from dilax.data.spec import COCO, RGB, ids_of_colours

_REMEDY = "get the file as COCO publishes it"
_IGNORE = COCO.ignore_label
_SEGMENT_IDS = 1 << 24  # the three bytes of a pixel
_RENAMED = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}


class Objects(NamedTuple):
    """The objects of VOC's classes in an image.

    Attributes:
        size: (height, width) of the image in pixels.
        painted: (class or ignore label, compressed run lengths) in the order in which
            they are painted: crowds, then objects from the largest to the smallest.
    """

    size: tuple[int, int]
    painted: tuple[tuple[int, bytes], ...]

    @property
    def has_single(self) -> bool:
        """Whether one of them is not a crowd."""
        return any(label != _IGNORE for label, _ in self.painted)

    def paint(self) -> np.ndarray:
        """Return (h, w) uint8 classes; pixels with only a crowd are ignored."""
        canvas = np.zeros(self.size, np.uint8, order="F")
        for label, runs in self.painted:
            inside = mask.decode({"size": self.size, "counts": runs})
            canvas[inside.view(bool)] = label
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
        """Whether one of them belongs to VOC's classes and is not a crowd."""
        return any(0 < label < _IGNORE for _, label in self.labels)

    def paint(self, tree: Tree, file: str) -> np.ndarray:
        """Return (h, w) uint8 classes; unlabelled pixels and crowds are ignored.

        Raises:
            ValueError: naming the file, if it is not an RGB image or has segments that
                the JSON does not list.
        """
        image = decoded(tree.read(file), file)
        if image.mode != "RGB":
            raise ValueError(
                f"{file}: is not an RGB image of ids; its mode is {image.mode}"
            )
        labels = {_colour(0): _IGNORE} | {_colour(i): label for i, label in self.labels}
        try:
            return ids_of_colours(np.asarray(image), labels, file)
        except ValueError as error:
            raise ValueError(
                f"{error}; segments_info does not list these segments, whose ids are "
                "R + 256 G + 65536 B"
            ) from error


def read_objects(tree: Tree, name: str) -> dict[str, Objects]:
    """Return the objects of each image in an instances JSON, by image file.

    Raises:
        ValueError: naming the file and the entry, if something in it is not as COCO
            documents it.
    """
    content = _Annotations(tree, name)
    found: dict[int, list[tuple[int, int, bytes]]] = {i: [] for i in content.images}
    for entry, image in content.entries():
        where = f"{name}: annotation {entry.get('id')}"
        if label := content.label(entry, where):
            size = _size(image)
            runs = compressed(entry.get("segmentation"), size, where)
            area = int(mask.area({"size": size, "counts": runs}))
            found[image["id"]].append((label, area, runs))
    objects = {}
    for number, image in content.images.items():
        order = sorted(found[number], key=lambda of: (of[0] != _IGNORE, -of[1]))
        painted = tuple((label, runs) for label, _, runs in order)
        objects[image["file_name"]] = Objects(_size(image), painted)
    return objects


def read_segments(tree: Tree, name: str) -> dict[str, Segments]:
    """Return the segments of each image in a panoptic JSON, by image file.

    Raises:
        ValueError: naming the file and the entry, if something in it is not as COCO
            documents it.
    """
    content = _Annotations(tree, name)
    found = {}
    for entry, image in content.entries():
        file = _value(entry, "file_name", str, name)
        where, labels = f"{name}: {file}", []
        for segment in _value(entry, "segments_info", list, where):
            number = _value(segment, "id", int, where)
            if not 0 < number < _SEGMENT_IDS:
                raise ValueError(
                    f"{where}: segment id {number} is not in 1 … {_SEGMENT_IDS - 1}; "
                    f"{_REMEDY}"
                )
            labels.append((number, content.label(segment, where)))
        found[image["file_name"]] = Segments(file, tuple(labels))
    return found


def compressed(shape: Any, size: tuple[int, int], where: str) -> bytes:
    """Compress a mask to the run lengths that pycocotools uses.

    Args:
        shape: polygons `[[x, y, x, y, …], …]`, or `{"size": [h, w], "counts": […]}`
            with run lengths down the columns, alternately outside and inside.
        size: (height, width) of the image in pixels.
        where: for the message.

    Raises:
        ValueError: with `where`, the value, and what is allowed, if it is neither or
            does not fit the image.
    """
    problem, pixels = "", size[0] * size[1]
    if isinstance(shape, list):
        shape = [_packed(ring) for ring in shape]
        if not shape:
            problem = "the segmentation has no polygon"
        elif wrong := [ring for ring in shape if not _is_polygon(ring, 2 * max(size))]:
            problem = (
                f"{reprlib.repr(wrong[0])} is not a polygon [x, y, x, y, …] of three "
                f"points or more in an image of {[*size]} pixels"
            )
    elif not isinstance(shape, dict):
        problem = f"{reprlib.repr(shape)} is neither polygons nor run lengths"
    elif shape.get("size") != [*size]:
        problem = f"run lengths are for {shape.get('size')} pixels, not for {[*size]}"
    else:
        runs = shape.get("counts")
        numbers = runs if isinstance(runs, list) else [-1]
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or (
            sum(numbers) != pixels
        ):
            problem = (
                f"the run lengths {reprlib.repr(runs)} do not add up to the {pixels} "
                "pixels of the image"
            )
    if problem:
        raise ValueError(f"{where}: {problem}; {_REMEDY}")
    runs = mask.frPyObjects(shape, *size)
    return (mask.merge(runs) if isinstance(runs, list) else runs)["counts"]


def _is_polygon(ring: Any, farthest: int) -> bool:
    """Whether there are points, none of them NaN or so far out that it is a mistake."""
    points = isinstance(ring, array) and len(ring) > 5 and len(ring) % 2 == 0
    return points and bool(np.abs(ring).max() <= farthest)


def _packed(ring: Any) -> Any:
    """Return a polygon's numbers in a quarter of the memory; other values unchanged."""
    try:
        return array("d", ring)
    except (TypeError, OverflowError):
        return ring


class _Annotations:
    """A JSON file of COCO, checked as it is read.

    Attributes:
        images: the listed images by their ids.
    """

    def __init__(self, tree: Tree, name: str):
        self._name, text = name, tree.read(name, 1 << 30)
        try:
            self._content = json.loads(text, object_hook=self._pack)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: is not JSON ({error}); {_REMEDY}") from error
        self.images: dict[int, dict] = {}
        for entry in _value(self._content, "images", list, name):
            self.images[_value(entry, "id", int, name)] = entry
            where = f"{name}: {_value(entry, 'file_name', str, name)}"
            for side in ("height", "width"):
                if _value(entry, side, int, where) < 1:
                    raise ValueError(f"{where}: {side} is {entry[side]}; {_REMEDY}")
        self._classes: dict[int, int] = {}  # 0 for categories that VOC does not have
        for entry in _value(self._content, "categories", list, name):
            category = _value(entry, "name", str, name)
            category = _RENAMED.get(category, category)
            known = category in COCO.classes and entry.get("isthing", 1)
            number = _value(entry, "id", int, name)
            self._classes[number] = COCO.classes.index(category) if known else 0
        if missing := set(range(1, COCO.num_classes)) - set(self._classes.values()):
            names = ", ".join(COCO.classes[i] for i in sorted(missing))
            raise ValueError(f"{name}: has no category for {names}; {_REMEDY}")

    @staticmethod
    def _pack(entry: dict) -> dict:
        """Pack polygons while parsing; as lists they would take 1 GB more."""
        if isinstance(rings := entry.get("segmentation"), list):
            entry["segmentation"] = [_packed(ring) for ring in rings]
            entry.pop("bbox", None)
        return entry

    def entries(self) -> Iterator[tuple[dict, dict]]:
        """Yield the annotations, each with its image."""
        entries = _value(self._content, "annotations", list, self._name)
        bar = f"read {Path(self._name).name}"
        for entry in tqdm(entries, bar, unit="entry", leave=False, delay=2):
            number = _value(entry, "image_id", int, self._name)
            if number not in self.images:
                raise ValueError(
                    f"{self._name}: annotation {entry.get('id')}: image {number} is "
                    f"not listed; {_REMEDY}"
                )
            yield entry, self.images[number]

    def label(self, entry: Any, where: str) -> int:
        """Return the class of an object or a segment; crowds of VOC's are ignored."""
        category = _value(entry, "category_id", int, where)
        if category not in self._classes:
            raise ValueError(f"{where}: category {category} is not listed; {_REMEDY}")
        crowd = _value(entry, "iscrowd", int, where)
        label = self._classes[category]
        return _IGNORE if crowd and label else label


def _value(entry: Any, key: str, kind: type, where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise ValueError(
            f"{where}: {key!r} is {reprlib.repr(value)}, but must be {kind.__name__}, "
            f"in {reprlib.repr(entry)}; {_REMEDY}"
        )
    return value


def _size(image: dict) -> tuple[int, int]:
    return image["height"], image["width"]


def _colour(segment: int) -> RGB:
    return segment & 255, segment >> 8 & 255, segment >> 16
