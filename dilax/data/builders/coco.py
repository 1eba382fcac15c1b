"""COCO with VOC's classes, as §5 trains on it: images with an object of VOC's kinds.

Objects of other categories are background, and so is the stuff of the panoptic labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dilax.data.builders.archives import Archive, Tree
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant
from dilax.data.builders.coco_labels import (
    Objects,
    Segments,
    read_objects,
    read_segments,
)
from dilax.data.spec import COCO

_URL = "http://images.cocodataset.org/"
_IMAGES = {
    "train2017": 118_287,
    "val2017": 5_000,
    "train2014": 82_783,
    "val2014": 40_504,
}
_MEASURED = "unlike_instances"


class Coco(SegmentationBuilder):
    """Builder of COCO with VOC's 21 classes.

    An image is taken if it has an object of VOC's categories that is annotated by
    itself: where there are crowds alone, every pixel that VOC has a class for would be
    ignored. Crowds of these categories are ignored but for the single objects on them.
    Where objects overlap, the smaller one, in pixels, is on top. No source says what
    the paper does there; this way the bottles on a table are not lost under it.

    In `panoptic_2017` nothing overlaps, because COCO's annotators decided what is on
    top, and pixels that they left unlabelled are ignored, which in the other variants
    are background. If the instances are at hand too, `metadata.json` of the prepared
    set gives under `unlike_instances`, for each split, the images and pixels that were
    compared, the share of pixels whose labels differ, and as `void_share` the share
    where they do because one of the two ignores the pixel.
    """

    name = "dilax_coco"
    SPEC = COCO
    HOMEPAGE = "https://cocodataset.org/"
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
        Variant(name=name, description=text, splits=(("train", 0), ("val", 0)))
        for name, text in (
            ("instances_2017", "objects, the smaller on top, in the split of 2017"),
            ("instances_2014", "objects, the smaller on top, in the split of 2014"),
            ("panoptic_2017", "segments, which do not overlap, in the split of 2017"),
        )
    ]

    def archives(self) -> Sequence[Archive]:
        """See the base class."""
        return [
            archive
            for archive in self.ARCHIVES
            if self._year in archive.name
            and (self._is_panoptic or "panoptic" not in archive.name)
        ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """See the base class.

        Raises:
            ValueError: naming the JSON, if it cannot be read or is not as COCO
                documents it.
        """
        self.info.metadata.pop(_MEASURED, None)  # by a preparation before this one
        self._listed: dict[str, tuple[str, int]] = {}
        self._objects: dict[str, Objects] = {}
        self._segments: dict[str, Segments] = {}
        self._unlike: dict[str, tuple[int, int, int]] = {}
        items = self._panoptic if self._is_panoptic else self._instances
        return {
            split: items(tree, f"{split}{self._year}") for split in ("train", "val")
        }

    def label(self, tree: Tree, item: Item) -> np.ndarray:
        """See the base class."""
        objects = self._objects.get(item.image)
        if objects is not None and not self._is_panoptic:
            return objects.paint()
        label = self._segments[item.image].paint(tree, item.label)
        if objects is not None:
            self._unlike[item.image] = _unlike(item.label, label, objects.paint())
        return label

    @property
    def _is_panoptic(self) -> bool:
        return self.variant.name.startswith("panoptic")

    @property
    def _year(self) -> str:
        return self.variant.name[-4:]

    def _instances(self, tree: Tree, split: str) -> list[Item]:
        file = f"instances_{split}.json"
        folder, root = _folder(tree, split), tree.root(file)
        if folder is None or root is None:
            return []
        objects = read_objects(tree, root + file)
        self._listed.setdefault(split, (root + file, len(objects)))
        self._objects |= {folder + name: of for name, of in objects.items()}
        return [
            Item(Path(name).stem, folder + name)
            for name, of in objects.items()
            if of.has_single
        ]

    def _panoptic(self, tree: Tree, split: str) -> list[Item]:
        file = f"panoptic_{split}.json"
        folder, root = _folder(tree, split), tree.root(file)
        if folder is None or root is None:
            return []
        segments = read_segments(tree, root + file)
        self._listed[split] = root + file, len(segments)
        self._segments |= {folder + name: of for name, of in segments.items()}
        self._instances(tree, split)
        masks = _masks(tree, split)
        return [
            Item(Path(name).stem, folder + name, masks + of.file)
            for name, of in segments.items()
            if of.has_single
        ]

    def _complete(
        self, tree: Tree, items: Mapping[str, Sequence[Item]]
    ) -> dict[str, list[Item]]:
        whole = super()._complete(tree, items)
        problems = [
            f"{file}: {images} images are listed, {_IMAGES[split]} published"
            for split, (file, images) in self._listed.items()
            if images != _IMAGES[split]
        ]
        if problems and not self.partial:
            raise ValueError(
                "\n".join([f"{tree}: not all of {self.SPEC.name} is there.", *problems])
                + "\nGet the whole file, or give --partial to prepare what is there."
            )
        self.info.metadata["partial"] |= bool(problems)
        return whole

    def _generate_examples(
        self, tree: Tree, split: str, items: Sequence[Item]
    ) -> Iterator[tuple[str, dict]]:
        yield from super()._generate_examples(tree, split, items)
        images = [i.image for i in items if i.image in self._unlike]
        if images:
            sums = np.sum([self._unlike[image] for image in images], 0)
            pixels, differ, void = map(int, sums)
            self.info.metadata.setdefault(_MEASURED, {})[split] = {
                "images": len(images),
                "pixels": pixels,
                "share": differ / pixels,
                "void_share": void / pixels,
            }


def _folder(tree: Tree, name: str) -> str | None:
    """The folder of this name, wherever in the tree it lies."""
    root = tree.root(f"{name}/")
    return None if root is None else f"{root}{name}/"


def _masks(tree: Tree, split: str) -> str:
    """The folder of the segments' PNGs, which are published as a zip in a zip."""
    name = f"panoptic_{split}"
    if _folder(tree, name) is None and (root := tree.root(f"{name}.zip")) is not None:
        tree.add_inner(f"{root}{name}.zip")
    return _folder(tree, name) or f"{name}/"


def _unlike(where: str, label: np.ndarray, other: np.ndarray) -> tuple[int, int, int]:
    """Pixels, those whose labels differ, and those of them that one label ignores."""
    if label.shape != other.shape:
        raise ValueError(
            f"{where}: is {label.shape[1]}x{label.shape[0]}, according to the "
            f"instances its image is {other.shape[1]}x{other.shape[0]}"
        )
    differ = label != other
    void = differ & ((label == COCO.ignore_label) | (other == COCO.ignore_label))
    return label.size, int(differ.sum()), int(void.sum())
