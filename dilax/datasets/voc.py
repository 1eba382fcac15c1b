"""Pascal VOC 2012 and the Semantic Boundaries Dataset (SBD), as §4 and §5 use them.

`train_aug` is every annotated image of VOC and SBD that is not in VOC's `val`.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.io

from dilax.datasets.archives import Archive, Tree
from dilax.datasets.builder import Item, SegmentationBuilder, Variant
from dilax.datasets.spec import VOC

_LISTS = "ImageSets/Segmentation/"
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
        root = tree.root(_LISTS)
        if root is None:
            return {}
        listed = {
            name.removeprefix(root + _LISTS).removesuffix(".txt"): tree.lines(name)
            for name in tree.under(root + _LISTS, ".txt")
        }
        splits = {
            split: [Item(i, _photo(root, i), _mask(root, i)) for i in listed[split]]
            for split in ("train", "val", "trainval")
            if split in listed
        }
        sbd = tree.root(_SBD)
        if sbd is not None and {"train", "val"} <= listed.keys():
            splits["train_aug"] = self._augmented(tree, root, sbd, listed)
        splits["test"] = [Item(i, _photo(root, i)) for i in listed.get("test", ())]
        return splits

    def _augmented(
        self, tree: Tree, root: str, sbd: str, listed: Mapping[str, list[str]]
    ) -> list[Item]:
        own, val = set(listed["train"]), set(listed["val"])
        both = {
            i for s in ("train", "val") for i in tree.lines(f"{sbd}dataset/{s}.txt")
        }
        masks = {i: _mat(sbd, i) for i in both}
        voc = {i: _mask(root, i) for i in own}
        masks = (
            {**voc, **masks} if self.variant.name == "sbd_first" else {**masks, **voc}
        )
        photos = {i: _photo(root, i) for i in masks}
        for image, photo in photos.items():
            if (
                photo not in tree
                and (inside := f"{sbd}dataset/img/{image}.jpg") in tree
            ):
                photos[image] = inside
        return [Item(i, photos[i], masks[i]) for i in sorted(masks) if i not in val]

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """See the base class."""
        if not item.label.endswith(".mat"):
            return super().label(tree, item)
        try:
            content = scipy.io.loadmat(io.BytesIO(tree.read(item.label)))
            return content["GTcls"][0, 0]["Segmentation"].astype(np.uint8)
        except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
            raise ValueError(
                f"{item.label}: is not one of SBD's files ({error!r})"
            ) from error


def _photo(root: str, image: str) -> str:
    return f"{root}JPEGImages/{image}.jpg"


def _mask(root: str, image: str) -> str:
    return f"{root}SegmentationClass/{image}.png"


def _mat(sbd: str, image: str) -> str:
    return f"{sbd}{_SBD}{image}.mat"
