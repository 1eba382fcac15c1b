"""COCO with VOC's classes, as in §5: the images that have an object of VOC's classes.

Objects of other categories are background, as are the stuff classes of panoptic labels.
"""

from collections.abc import Mapping, Sequence
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


class Coco(SegmentationBuilder):
    """Builder of COCO with VOC's 21 classes.

    An image is used if it has an object of VOC's classes that is annotated
    individually: if there were only crowds, every pixel of VOC's classes would be
        ignored. Crowds of
    these classes are ignored except where single objects cover them. Where objects
    overlap, the smaller one, in pixels, is on top, so that a table does not hide the
    bottles on it. No source says what the paper does in this case.

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
        Variant(name=name, description=text, splits=(("train", 0), ("val", 0)))
        for name, text in (
            ("instances_2017", "objects, the smaller on top, in the split of 2017"),
            ("instances_2014", "objects, the smaller on top, in the split of 2014"),
            ("panoptic_2017", "segments, which do not overlap, in the split of 2017"),
        )
    ]

    def archives(self) -> Sequence[Archive]:
        """Return the archives of the variant's year."""
        return [
            archive
            for archive in self.ARCHIVES
            if self._year in archive.name
            and (self._is_panoptic or "panoptic" not in archive.name)
        ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """List the images that have an object of VOC's classes.

        Raises:
            ValueError: naming the JSON, if it cannot be read or does not have COCO's
                documented form.
        """
        self._problems: list[str] = []
        self._labels: dict[str, Objects | Segments] = {}
        return {
            split: self._listed(tree, f"{split}{self._year}")
            for split in ("train", "val")
        }

    def problems(self) -> list[str]:
        """Return the JSON files that list more or fewer images than published."""
        return self._problems

    def label(self, tree: Tree, item: Item) -> np.ndarray:
        """Paint the image's objects, or look up its segments.

        Raises:
            ValueError: naming the PNG of segments, if it does not have the documented
                form.
        """
        label = self._labels[item.image]
        if isinstance(label, Segments):
            return label.paint(tree, item.label)
        return label.paint()

    @property
    def _is_panoptic(self) -> bool:
        return self.variant.name.startswith("panoptic")

    @property
    def _year(self) -> str:
        return self.variant.name[-4:]

    def _listed(self, tree: Tree, split: str) -> list[Item]:
        """Return the images of a split, `"train2017"`, that have an object."""
        kind = "panoptic" if self._is_panoptic else "instances"
        folder, file = tree.find(f"{split}/"), tree.find(f"{kind}_{split}.json")
        if folder is None or file is None:
            return []
        read = read_segments if self._is_panoptic else read_objects
        labels = {folder + name: label for name, label in read(tree, file).items()}
        if len(labels) != self.LISTED[split]:
            self._problems.append(
                f"{file}: {len(labels)} images are listed, "
                f"{self.LISTED[split]} published"
            )
        self._labels |= labels
        masks = f"panoptic_{split}"
        inner = tree.find(f"{masks}.zip") if self._is_panoptic else None
        if inner and tree.find(f"{masks}/") is None:
            tree.add_inner(inner)  # the PNGs are published as a zip in a zip
        home = tree.find(f"{masks}/") or f"{masks}/"
        return [
            Item(
                Path(image).stem,
                image,
                home + label.file if isinstance(label, Segments) else "",
            )
            for image, label in labels.items()
            if label.has_single
        ]
