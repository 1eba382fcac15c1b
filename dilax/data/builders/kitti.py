"""KITTI with the semantic labels of Ros et al. (2015), as appendix A.2 uses it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dilax.data.builders.archives import Tree
from dilax.data.builders.builder import (
    Item,
    SegmentationBuilder,
    Variant,
    decode_colours,
)
from dilax.data.spec import KITTI

_FOLDERS = {"train": "Training_00/", "test": "Validation_07/"}
_IDS = {colour: i for i, colour in enumerate(KITTI.palette)} | dict.fromkeys(
    KITTI.void_colours, KITTI.ignore_label
)


class Kitti(SegmentationBuilder):
    """Builder of 146 images of KITTI's odometry benchmark with labels by Ros et al.

    Their training images, of sequence 00, are `train`; what they call validation, of
    sequence 07, is `test`, as in the paper. Labels are colour images, black is void.
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
        """See the base class."""
        return {split: _pairs(tree, folder) for split, folder in _FOLDERS.items()}

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """See the base class.

        Raises:
            ValueError: naming the file, if it is no image, or has colours that stand
                for no class.
        """
        return decode_colours(tree, item.label, _IDS)


def _pairs(tree: Tree, folder: str) -> list[Item]:
    """Every name that an image or a label has."""
    root = f"{tree.root(folder) or ''}{folder}"
    images, labels = f"{root}RGB/", f"{root}GT/"
    names = {n.removeprefix(images) for n in tree.under(images, ".png")}
    names |= {n.removeprefix(labels) for n in tree.under(labels, ".png")}
    return [Item(Path(n).stem, images + n, labels + n) for n in sorted(names)]
