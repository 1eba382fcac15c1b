"""Pascal VOC 2012 and the Semantic Boundaries Dataset (SBD), as §4 and §5 use them.

`train_aug` is every annotated image of VOC and SBD that is not in VOC's `val`.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.io

from dilax.data.builders.archives import Archive, Tree
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant
from dilax.data.spec import VOC

_SBD = "dataset/cls/"


class Voc(SegmentationBuilder):
    """Builder of VOC 2012 with SBD.

    Images that both annotate have VOC's masks in the variant `voc_first` and SBD's in
    `sbd_first`; the paper augments VOC's own set, so `voc_first` is the default. In
    `train`, `val`, and `trainval` all masks are VOC's. SBD's masks do not mark boundary
    pixels to ignore.
    """

    name = "dilax_voc"
    SPEC = VOC
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    HOW = (
        "--from names a folder with VOCtrainval_11-May-2012.tar, benchmark.tgz (SBD, "
        "for train_aug) and VOC2012test.tar (for test), or with VOCdevkit/VOC2012 and "
        "benchmark_RELEASE unpacked."
    )
    ARCHIVES = (
        Archive(
            "VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            f"{HOMEPAGE}VOCtrainval_11-May-2012.tar",
            "train, val, trainval",
        ),
        Archive(
            "benchmark.tgz",
            0,
            "82b4d87ceb2ed10f6038a1cba92111cb",
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
            "semantic_contours/benchmark.tgz",
            "SBD, for train_aug",
        ),
        Archive(
            "VOC2012test.tar",
            1_850_626_560,
            "f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
            "",
            "test; from the VOC evaluation server, with an account",
        ),
    )
    BUILDER_CONFIGS = [
        Variant(
            "voc_first", "VOC's masks where SBD annotates the same image", VOC.splits
        ),
        Variant(
            "sbd_first", "SBD's masks in train_aug, wherever there is one", VOC.splits
        ),
    ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """List VOC's own splits, and `train_aug` if SBD is there."""
        splits = {s: _listed(tree, s) for s in ("train", "val", "trainval", "test")}
        sbd = tree.find(_SBD)
        if sbd is not None and splits["train"] and splits["val"]:
            home, benchmark = _home(tree, "train"), sbd.removesuffix("cls/")
            items = {}
            for split in ("train", "val"):
                for name in tree.lines(f"{benchmark}{split}.txt"):
                    photo = f"{home}JPEGImages/{name}.jpg"
                    if photo not in tree and f"{benchmark}img/{name}.jpg" in tree:
                        photo = f"{benchmark}img/{name}.jpg"
                    items[name] = Item(name, photo, f"{sbd}{name}.mat")
            for item in splits["train"]:
                if self.variant.name == "voc_first" or item.id not in items:
                    items[item.id] = item
            for item in splits["val"]:
                items.pop(item.id, None)
            splits["train_aug"] = [items[name] for name in sorted(items)]
        return splits

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """Return (h, w) uint8 ids of a PNG of VOC or a MATLAB file of SBD.

        Raises:
            ValueError: naming the file, if it cannot be read.
        """
        if not item.label.endswith(".mat"):
            return super().label(tree, item)
        content = tree.read(item.label)
        try:
            annotation = scipy.io.loadmat(io.BytesIO(content))["GTcls"][0, 0]
            return annotation["Segmentation"].astype(np.uint8)
        except Exception as error:  # scipy's errors have no common base class
            raise ValueError(
                f"{item.label}: is not a file of SBD ({error!r})"
            ) from error


def _home(tree: Tree, split: str) -> str | None:
    """Find the folder that lists a split: VOC2012 if other years are there, too."""
    marker = f"ImageSets/Segmentation/{split}.txt"
    found = tree.find(f"VOC2012/{marker}") or tree.find(marker)
    return None if found is None else found.removesuffix(marker)


def _listed(tree: Tree, split: str) -> list[Item]:
    home = _home(tree, split)
    if home is None:
        return []
    photos, masks = f"{home}JPEGImages/", f"{home}SegmentationClass/"
    return [
        Item(i, f"{photos}{i}.jpg", "" if split == "test" else f"{masks}{i}.png")
        for i in tree.lines(f"{home}ImageSets/Segmentation/{split}.txt")
    ]
