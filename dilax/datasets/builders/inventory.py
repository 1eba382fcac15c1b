"""What a data set lists, against what of it is there."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dilax.datasets.builders.archives import Tree

_NAMED = 100


class Item(NamedTuple):
    """An image of a split.

    Attributes:
        id: as the data set's lists name it.
        image: the image's file in the tree.
        label: the label's file in the tree, or "" if it is not a file or not given.
    """

    id: str
    image: str
    label: str = ""


class Inventory(NamedTuple):
    """What `take_inventory` finds.

    Attributes:
        whole: the items of each split whose files are all there.
        problems: what else there should be, in words.
    """

    whole: dict[str, list[Item]]
    problems: list[str]

    def listing(self) -> str:
        """The problems a line each, up to a hundred."""
        more = len(self.problems) - _NAMED
        rest = [f"… and {more} more"] if more > 0 else []
        return "".join(f"\n{line}" for line in self.problems[:_NAMED] + rest)


def take_inventory(
    tree: Tree, items: Mapping[str, Sequence[Item]], published: Mapping[str, int]
) -> Inventory:
    """Compares the lists of a data set with its files, and with what is published.

    Args:
        tree: the files.
        items: the listed items of each split.
        published: the images of each split; 0 where it is not known.

    Returns:
        What there is. A split of which there is no file at all is in neither part.
    """
    whole, problems = {}, []
    for split, listed in items.items():
        missing = [f for item in listed for f in _files(item) if f not in tree]
        if len(missing) == sum(len(_files(item)) for item in listed):
            continue
        whole[split] = [i for i in listed if all(f in tree for f in _files(i))]
        problems += [f"{split}: {file} is missing" for file in missing]
        count, known = len(listed), published.get(split, 0)
        if count != known > 0:
            problems.append(f"{split}: {count} images are listed, {known} published")
    return Inventory({s: listed for s, listed in whole.items() if listed}, problems)


def _files(item: Item) -> list[str]:
    return [file for file in (item.image, item.label) if file]
