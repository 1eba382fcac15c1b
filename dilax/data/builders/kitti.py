"""KITTI with the semantic labels of Ros et al. (2015), as appendix A.2 uses it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dilax.data.builders.archives import Tree
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant, decoded
from dilax.data.spec import KITTI, ids_of_colours

_FOLDERS = {"train": "Training_00/", "test": "Validation_07/"}
_IDS = {colour: i for i, colour in enumerate(KITTI.palette)} | dict.fromkeys(
    KITTI.void_colours, KITTI.ignore_label
)


class Kitti(SegmentationBuilder):
    """Builder of 146 images of KITTI's odometry benchmark with labels by Ros et al.

    Their training images, from sequence 00, are `train`; those that they call
    validation, from sequence 07, are `test`, as in the paper. Labels are colour images;
    black is void.
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
        Variant(
            name="ros2015",
            description="100 images to train on and 46 to test on",
            splits=KITTI.splits,
        )
    ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """Pair the images and labels of each split by their names."""
        splits = {}
        for split, folder in _FOLDERS.items():
            root = tree.find(folder) or folder
            names = {
                file.removeprefix(root + kind)
                for kind in ("RGB/", "GT/")
                for file in tree.under(root + kind, ".png")
            }
            splits[split] = [
                Item(Path(name).stem, f"{root}RGB/{name}", f"{root}GT/{name}")
                for name in sorted(names)
            ]
        return splits

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """Return (h, w) uint8 ids of the label's colours.

        Raises:
            ValueError: naming the file, if it is not an image or has other colours.
        """
        colours = decoded(tree.read(item.label), item.label).convert("RGB")
        return ids_of_colours(np.asarray(colours), _IDS, item.label)
