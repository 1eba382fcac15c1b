"""Cityscapes (Cordts et al. 2016), as appendix A.3 uses it: the fine annotations.

Ids on disk are the raw label ids, 0 to 33, as submissions want them; `CITYSCAPES` says
which of them are the 19 classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from dilax.data.builders.archives import Archive, Tree
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant
from dilax.data.spec import CITYSCAPES

_IMAGE = "_leftImg8bit.png"
_COARSE = "train_extra"
# Its image, as published, is black; many have removed or replaced it.
_BLACK = "troisdorf_000000_000073"


class Cityscapes(SegmentationBuilder):
    """Builder of Cityscapes.

    `fine_and_coarse` has, besides, the coarsely annotated images of other cities as
    `train_extra`: 19,997, because one of the published 19,998 is black and left out.
    The labels of `test` say nothing but what is no part of the scene, and are optional.
    """

    name = "dilax_cityscapes"
    SPEC = CITYSCAPES
    HOMEPAGE = "https://www.cityscapes-dataset.com/"
    HOW = (
        "--from names a folder with leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip (for fine_and_coarse leftImg8bit_trainextra.zip and "
        "gtCoarse.zip too), or with leftImg8bit/, gtFine/ and gtCoarse/ unpacked. They "
        "are to be had at the homepage, with an account."
    )
    ARCHIVES: tuple[Archive, ...] = (
        Archive("leftImg8bit_trainvaltest.zip", holds="images of train, val, test"),
        Archive("gtFine_trainvaltest.zip", holds="labels of train, val, test"),
        Archive("leftImg8bit_trainextra.zip", holds="images of train_extra"),
        Archive("gtCoarse.zip", holds="labels of train_extra"),
    )
    BUILDER_CONFIGS = [
        Variant(
            name="fine",
            description="the finely annotated images",
            splits=CITYSCAPES.splits,
        ),
        Variant(
            name="fine_and_coarse",
            description="the finely annotated images, and the coarsely annotated",
            splits=(*CITYSCAPES.splits, (_COARSE, 19_997)),
        ),
    ]

    def archives(self) -> Sequence[Archive]:
        """See the base class."""
        splits = dict(self.variant.splits)
        return [a for a in self.ARCHIVES if _COARSE in splits or _COARSE not in a.holds]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """See the base class."""
        return {
            split: _pairs(tree, split, "gtCoarse" if split == _COARSE else "gtFine")
            for split, _ in self.variant.splits
        }


def _pairs(tree: Tree, split: str, kind: str) -> list[Item]:
    """Every name, `CITY/CITY_SEQUENCE_FRAME`, that an image or a label has."""
    images = _folder(tree, f"leftImg8bit/{split}/")
    labels, suffix = _folder(tree, f"{kind}/{split}/"), f"_{kind}_labelIds.png"
    names = _names(tree, images, _IMAGE)
    if split != "test":
        names |= _names(tree, labels, suffix)
    return [
        Item(
            id=PurePosixPath(name).name,
            image=f"{images}{name}{_IMAGE}",
            label=_label(tree, f"{labels}{name}{suffix}", optional=split == "test"),
        )
        for name in sorted(names)
        if not name.endswith(_BLACK)
    ]


def _folder(tree: Tree, folder: str) -> str:
    """The folder of this name, wherever in the tree it lies."""
    return f"{tree.root(folder) or ''}{folder}"


def _names(tree: Tree, folder: str, suffix: str) -> set[str]:
    files = tree.under(folder, suffix)
    return {file.removeprefix(folder).removesuffix(suffix) for file in files}


def _label(tree: Tree, file: str, optional: bool) -> str:
    return "" if optional and file not in tree else file
