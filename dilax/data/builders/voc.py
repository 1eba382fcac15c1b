"""Pascal VOC 2012 and the Semantic Boundaries Dataset (SBD), as §4 and §5 use them.

`train_aug` is every annotated image of VOC and SBD that is not in VOC's `val`.
"""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.io

from dilax.data.builders.archives import Archive, Tree
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant
from dilax.data.spec import VOC

_SBD = "dataset/cls/"


class Voc(SegmentationBuilder):
    """Builder of VOC 2012 with SBD.

    The images that both annotate carry VOC's mask in the variant `voc_first`, and SBD's
    in `sbd_first`; the paper augments VOC's own set, so the first is the default. Of
    `train`, `val` and `trainval`, the masks are VOC's in both. SBD has no boundary
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
            name="voc_first",
            description="VOC's masks where SBD annotates the same image",
            splits=VOC.splits,
        ),
        Variant(
            name="sbd_first",
            description="SBD's masks in train_aug, wherever there is one",
            splits=VOC.splits,
        ),
    ]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """See the base class."""
        splits = {s: _listed(tree, s) for s in ("train", "val", "trainval", "test")}
        sbd = tree.root(_SBD)
        if sbd is not None and splits["train"] and splits["val"]:
            splits["train_aug"] = self._augmented(
                tree, sbd, splits["train"], splits["val"]
            )
        return splits

    def _augmented(
        self, tree: Tree, sbd: str, train: list[Item], val: list[Item]
    ) -> list[Item]:
        photos = (f"{_home(tree, 'train')}JPEGImages/", f"{sbd}dataset/img/")
        lists = [tree.lines(f"{sbd}dataset/{split}.txt") for split in ("train", "val")]
        items = {
            i: Item(i, _photo(tree, photos, i), f"{sbd}{_SBD}{i}.mat")
            for i in itertools.chain(*lists)
        }
        for item in train:
            if self.variant.name == "voc_first" or item.id not in items:
                items[item.id] = item
        for item in val:
            items.pop(item.id, None)
        return [items[i] for i in sorted(items)]

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """See the base class."""
        if not item.label.endswith(".mat"):
            return super().label(tree, item)
        content = tree.read(item.label)
        try:
            annotation = scipy.io.loadmat(io.BytesIO(content))["GTcls"][0, 0]
            return annotation["Segmentation"].astype(np.uint8)
        except Exception as error:  # scipy's have no common base
            raise ValueError(
                f"{item.label}: is not one of SBD's files ({error!r})"
            ) from error


def _home(tree: Tree, split: str) -> str | None:
    """The folder of VOC 2012 that lists a split, also where other years lie by it."""
    marker = f"ImageSets/Segmentation/{split}.txt"
    above = tree.root(f"VOC2012/{marker}")
    return tree.root(marker) if above is None else f"{above}VOC2012/"


def _listed(tree: Tree, split: str) -> list[Item]:
    home = _home(tree, split)
    if home is None:
        return []
    photos, masks = f"{home}JPEGImages/", f"{home}SegmentationClass/"
    return [
        Item(i, f"{photos}{i}.jpg", "" if split == "test" else f"{masks}{i}.png")
        for i in tree.lines(f"{home}ImageSets/Segmentation/{split}.txt")
    ]


def _photo(tree: Tree, folders: Iterable[str], image: str) -> str:
    """The image in the first of the folders that has it, else in the first."""
    places = [f"{folder}{image}.jpg" for folder in folders]
    return next((place for place in places if place in tree), places[0])
