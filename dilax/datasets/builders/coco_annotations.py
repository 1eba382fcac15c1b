"""COCO's annotations as labels of VOC's classes: objects to paint, segments to look up.

Format: https://cocodataset.org/#format-data. A JSON file takes half a gigabyte; of
each image, only what its label is made of is kept.
"""

import json
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dilax.datasets.builders.archives import Tree
from dilax.datasets.builders.builder import decoded
from dilax.datasets.builders.coco_masks import area, compressed, inside, packed_ring
from dilax.datasets.spec import COCO, RGB, ids_of_colours

_IGNORE = COCO.ignore_label
_REMEDY = "get the file as COCO publishes it"
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
