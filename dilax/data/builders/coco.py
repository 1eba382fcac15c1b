"""COCO with VOC's classes, as in §5: the images that have an object of VOC's classes.

Objects of other categories are background, as are the stuff classes of panoptic labels.

Format: https://cocodataset.org/#format-data. A JSON file takes half a gigabyte; only
the parts that the labels need are kept. Masks are checked before pycocotools reads
them, because it returns uninitialized memory if run lengths add up to too few pixels.
"""

import contextlib
import json
import reprlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask
from tqdm import tqdm

from dilax.data.builders.archives import Archive, Tree
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant, decoded
from dilax.data.spec import COCO, ids_of_colours

_ON_TOP = "objects, the smaller on top, in the split of"
_URL = "http://images.cocodataset.org/"
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


class _Label(NamedTuple):
    """What is annotated in an image.

    Attributes:
        size: (height, width) of the image in pixels.
        parts: (class or ignore label, mask) pairs. Masks of objects are compressed run
            lengths, in the order in which they are painted: crowds, then objects from
            the largest to the smallest. Those of segments are their ids in the PNG.
        file: the PNG of segment ids, without its folder.
    """

    size: tuple[int, int]
    parts: tuple[tuple[int, Any], ...]
    file: str = ""


class Coco(SegmentationBuilder):
    """Builder of COCO with VOC's 21 classes.

    An image is used if it has an object of VOC's classes that is annotated
    individually: if there were only crowds, every pixel of VOC's classes would be
    ignored. Crowds of these classes are ignored except where single objects cover them.
    Where objects overlap, the smaller one, in pixels, is on top, so that a table does
    not hide the bottles on it. No source says what the paper does in this case.

    In `panoptic_2017` nothing overlaps, because COCO's annotators decided what is on
    top. Pixels that they left unlabelled are ignored; in the other variants, these are
    background.
    """

    name = "dilax_coco"
    SPEC = COCO
    HOMEPAGE = "https://cocodataset.org/"
    LISTED = {
        "train2017": 118_287,
        "val2017": 5_000,
        "train2014": 82_783,
        "val2014": 40_504,
    }
    HOW = (
        "--from names a folder with train2017.zip, val2017.zip and "
        "annotations_trainval2017.zip (for instances_2014 those of 2014, for "
        "panoptic_2017 panoptic_annotations_trainval2017.zip), or with train2017/, "
        "val2017/ and annotations/ unpacked."
    )
    ARCHIVES: tuple[Archive, ...] = (
        Archive(
            "train2017.zip",
            19_336_861_798,
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            f"{_URL}zips/train2017.zip",
            "images of train",
        ),
        Archive(
            "val2017.zip",
            815_585_330,
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            f"{_URL}zips/val2017.zip",
            "images of val",
        ),
        Archive(
            "annotations_trainval2017.zip",
            252_907_541,
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            f"{_URL}annotations/annotations_trainval2017.zip",
            "objects of train and val",
        ),
        Archive(
            "panoptic_annotations_trainval2017.zip",
            860_725_834,
            "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
            f"{_URL}annotations/panoptic_annotations_trainval2017.zip",
            "segments of train and val",
        ),
        Archive(
            "train2014.zip",
            13_510_573_713,
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            f"{_URL}zips/train2014.zip",
            "images of train",
        ),
        Archive(
            "val2014.zip",
            6_645_013_297,
            "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            f"{_URL}zips/val2014.zip",
            "images of val",
        ),
        Archive(
            "annotations_trainval2014.zip",
            252_872_794,
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            f"{_URL}annotations/annotations_trainval2014.zip",
            "objects of train and val",
        ),
    )
    BUILDER_CONFIGS = [
        Variant(name, text, (("train", 0), ("val", 0)), archives)
        for name, text, archives in (
            ("instances_2017", f"{_ON_TOP} 2017", "^(?!panoptic).*2017"),
            ("instances_2014", f"{_ON_TOP} 2014", "2014"),
            (
                "panoptic_2017",
                "segments, which do not overlap, in the split of 2017",
                "2017",
            ),
        )
    ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """List the images that have an object of VOC's classes.

        Raises:
            ValueError: naming the JSON, if it cannot be read or does not have COCO's
                documented form.
        """
        problems: list[str] = []
        self.problems, self._labels = problems, dict[str, _Label]()
        kind, year = self.variant.name.split("_")
        splits: dict[str, list[Item]] = {"train": [], "val": []}
        for split, items in splits.items():
            listed = split + year
            folder, file = tree.find(f"{listed}/"), tree.find(f"{kind}_{listed}.json")
            if folder is None or file is None:
                continue
            content = _Annotations(tree, file)
            panoptic = kind == "panoptic"
            labels = content.segments() if panoptic else content.objects()
            if len(labels) != self.LISTED[listed]:
                problems.append(
                    f"{file}: {len(labels)} images are listed, "
                    f"{self.LISTED[listed]} published"
                )
            masks = f"panoptic_{listed}"
            inner = tree.find(f"{masks}.zip") if panoptic else None
            if inner and tree.find(f"{masks}/") is None:
                tree.add_inner(inner)  # the PNGs are published as a zip in a zip
            home = tree.find(f"{masks}/") or f"{masks}/"
            for name, label in labels.items():
                self._labels[folder + name] = label
                if any(0 < number < _IGNORE for number, _ in label.parts):
                    png = home + label.file if label.file else ""
                    items.append(Item(Path(name).stem, folder + name, png))
        return splits

    def label(self, tree: Tree, item: Item) -> np.ndarray:
        """Paint the image's objects, or look up its segments.

        Pixels that show only a crowd, or no segment, are ignored.

        Raises:
            ValueError: naming the PNG of segments, if it is not an RGB image or has
                segments that the JSON does not list.
        """
        size, parts, _ = self._labels[item.image]
        if not item.label:
            canvas = np.zeros(size, np.uint8, order="F")
            for label, runs in parts:
                inside = mask.decode({"size": size, "counts": runs})
                canvas[inside.view(bool)] = label
            return np.ascontiguousarray(canvas)
        image = decoded(tree.read(item.label), item.label)
        if image.mode != "RGB":
            raise ValueError(
                f"{item.label}: is not an RGB image of ids; its mode is {image.mode}"
            )
        labels = {
            (i & 255, i >> 8 & 255, i >> 16): label
            for label, i in ((_IGNORE, 0), *parts)
        }
        try:
            return ids_of_colours(np.asarray(image), labels, item.label)
        except ValueError as error:
            raise ValueError(
                f"{error}; segments_info does not list these segments, whose ids are "
                "R + 256 G + 65536 B"
            ) from error


class _Annotations:
    """A JSON file of COCO, checked as it is read."""

    def __init__(self, tree: Tree, name: str):
        self._name, text = name, tree.read(name, 1 << 30)
        try:
            self._content = json.loads(text, object_hook=_packed)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: is not JSON ({error}); {_REMEDY}") from error
        self._images: dict[int, tuple[str, tuple[int, int]]] = {}
        for entry in _value(self._content, "images", list, name):
            number = _value(entry, "id", int, name)
            file = _value(entry, "file_name", str, name)
            for side in ("height", "width"):
                if _value(entry, side, int, f"{name}: {file}") < 1:
                    raise ValueError(
                        f"{name}: {file}: {side} is {entry[side]}; {_REMEDY}"
                    )
            self._images[number] = file, (entry["height"], entry["width"])
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

    def objects(self) -> dict[str, _Label]:
        """Return the objects of each image, by image file.

        Raises:
            ValueError: naming the file and the entry, if something in it is not as COCO
                documents it.
        """
        found: dict[int, list[tuple[int, int, bytes]]] = {i: [] for i in self._images}
        for entry, image in self._entries():
            where = f"{self._name}: annotation {entry.get('id')}"
            if label := self._class(entry, where):
                size = self._images[image][1]
                runs = _compressed(entry.get("segmentation"), size, where)
                area = int(mask.area({"size": size, "counts": runs}))
                found[image].append((label, area, runs))
        labels = {}
        for number, (file, size) in self._images.items():
            order = sorted(found[number], key=lambda of: (of[0] != _IGNORE, -of[1]))
            labels[file] = _Label(size, tuple((c, runs) for c, _, runs in order))
        return labels

    def segments(self) -> dict[str, _Label]:
        """Do the same as `objects` for the segments of a panoptic file."""
        labels = {}
        for entry, image in self._entries():
            png = _value(entry, "file_name", str, self._name)
            where, parts = f"{self._name}: {png}", []
            for segment in _value(entry, "segments_info", list, where):
                number = _value(segment, "id", int, where)
                if not 0 < number < _SEGMENT_IDS:
                    raise ValueError(
                        f"{where}: segment id {number} is not in 1 … "
                        f"{_SEGMENT_IDS - 1}; {_REMEDY}"
                    )
                parts.append((self._class(segment, where), number))
            file, size = self._images[image]
            labels[file] = _Label(size, tuple(parts), png)
        return labels

    def _entries(self) -> Iterator[tuple[dict, int]]:
        """Yield the annotations, each with the id of its image."""
        entries = _value(self._content, "annotations", list, self._name)
        bar = f"read {Path(self._name).name}"
        for entry in tqdm(entries, bar, unit="entry", leave=False, delay=2):
            number = _value(entry, "image_id", int, self._name)
            if number not in self._images:
                raise ValueError(
                    f"{self._name}: annotation {entry.get('id')}: image {number} is "
                    f"not listed; {_REMEDY}"
                )
            yield entry, number

    def _class(self, entry: Any, where: str) -> int:
        """Return the class of an object or a segment; crowds of VOC's are ignored."""
        category = _value(entry, "category_id", int, where)
        if category not in self._classes:
            raise ValueError(f"{where}: category {category} is not listed; {_REMEDY}")
        crowd = _value(entry, "iscrowd", int, where)
        label = self._classes[category]
        return _IGNORE if crowd and label else label


def _packed(entry: dict) -> dict:
    """Pack polygons while parsing; as lists they would take 1 GB more."""
    if isinstance(rings := entry.get("segmentation"), list):
        for i, ring in enumerate(rings):
            with contextlib.suppress(TypeError, OverflowError):  # `_compressed` refuses
                rings[i] = array("d", ring)
        entry.pop("bbox", None)
    return entry


def _value(entry: Any, key: str, kind: type, where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise ValueError(
            f"{where}: {key!r} is {reprlib.repr(value)}, but must be {kind.__name__}, "
            f"in {reprlib.repr(entry)}; {_REMEDY}"
        )
    return value


def _compressed(shape: Any, size: tuple[int, int], where: str) -> bytes:
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

    def is_polygon(ring: Any) -> bool:
        """Whether there are points, none of them NaN or far outside by mistake."""
        points = isinstance(ring, array) and len(ring) > 5 and len(ring) % 2 == 0
        return points and bool(np.abs(ring).max() <= 2 * max(size))

    problem, pixels = "", size[0] * size[1]
    if isinstance(shape, list):
        if not shape:
            problem = "the segmentation has no polygon"
        elif wrong := [ring for ring in shape if not is_polygon(ring)]:
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
