"""Cityscapes (Cordts et al. 2016), as appendix A.3 uses it: the fine annotations.

Ids on disk are the raw label ids, 0 to 33, as submissions need them; `CITYSCAPES` maps
them to the 19 classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from dilax.data.builders.archives import Archive, Tree
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant
from dilax.data.spec import CITYSCAPES

_IMAGE = "_leftImg8bit.png"
_COARSE = "train_extra"
# Its published image is black; many people have removed or replaced it.
_BLACK = "troisdorf_000000_000073"


class Cityscapes(SegmentationBuilder):
    """Builder of Cityscapes.

    `fine_and_coarse` adds the coarsely annotated images of other cities as
    `train_extra`: 19,997, because one of the published 19,998 is black and left out.
    The labels of `test` only mark what is not part of the scene, and are optional.
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
        """Return the archives of the variant, which may include `train_extra`'s."""
        splits = dict(self.variant.splits)
        return [a for a in self.ARCHIVES if _COARSE in splits or _COARSE not in a.holds]

    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """Pair the images and labels of each split by `CITY/CITY_SEQUENCE_FRAME`."""
        splits = {}
        for split, _ in self.variant.splits:
            kind = "gtCoarse" if split == _COARSE else "gtFine"
            folders = f"leftImg8bit/{split}/", f"{kind}/{split}/"
            images, labels = (tree.find(folder) or folder for folder in folders)
            suffix = f"_{kind}_labelIds.png"
            pictured, labelled = (
                {
                    f.removeprefix(folder).removesuffix(end)
                    for f in tree.under(folder, end)
                }
                for folder, end in ((images, _IMAGE), (labels, suffix))
            )
            names = pictured if split == "test" else pictured | labelled
            splits[split] = [
                Item(
                    id=PurePosixPath(name).name,
                    image=f"{images}{name}{_IMAGE}",
                    label=f"{labels}{name}{suffix}"
                    if split != "test" or name in labelled
                    else "",
                )
                for name in sorted(names)
                if not name.endswith(_BLACK)
            ]
        return splits
