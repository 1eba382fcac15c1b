"""What the names of files and folders say: mask or image, which split, which sample.

Words such as images, masks, train and val are known in the forms that data sets give
them; the rest of a name tells samples apart. Case and Unicode forms count for nothing.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

SPLITS = ("train", "val", "test")
Words = frozenset[str]
_MASK = (
    r"(?<!un)label(?:l?ed|s|ids|trainids)?|masks?|trimaps?|annot[a-z]*|segment[a-z]*"
    r"|semantic|targets?|ground[ _-]?truth|(?<![a-z])(?:gt|gts|gtfine|segs?)(?![a-z])"
)
_IMAGE = r"images?|imgs?|photos?|pictures?|jpe?gs?|rgb|frames?|leftimg8bit"
_ENDING = re.compile(
    rf"(?:^|[ _.-]+)(?:{_MASK}|{_IMAGE}|colou?r|ome|l)$|^(?:{_MASK}|{_IMAGE})[ _.-]+"
)
_MASK_NAME = re.compile(rf"(?:^|[ _.-])(?:{_MASK}|l)$|^(?:{_MASK})[ _.-]")
_SPLIT = re.compile(r"(train|val|test)(?:ing|id|idation)?[ _-]?(?:set)?\d*")
_LIST = re.compile(r"[ _.-]+(?:list|files|pairs|ids|split)$|^(?:list|files)[ _.-]+")


def one_form(text: str) -> str:
    """The text in the Unicode form that all file systems can be compared in."""
    return unicodedata.normalize("NFC", text)


def core_of(stem: str) -> str:
    """A file's name without suffix and without beginnings or endings such as _mask.

    Example:
        >>> core_of("aachen_000019_gtFine_labelIds"), core_of("IMG_7"), core_of("mask")
        ('aachen_000019', '7', '')
    """
    stem = one_form(stem).casefold()
    while stem != (shorter := _ENDING.sub("", stem)):
        stem = shorter
    return stem


def is_mask_name(stem: str) -> bool:
    """Whether a file's name says that it is a mask, as cat_mask and label_12 do."""
    return bool(_MASK_NAME.search(one_form(stem).casefold()))


def kind_of(folders: Sequence[str]) -> Literal["", "mask", "instances"]:
    """What the innermost folder that says so says of its files; "" if they are images.

    Example:
        >>> kind_of(["labels", "images"]), kind_of(["trainannot"])
        ('', 'mask')
        >>> kind_of(["SegmentationObject"])
        'instances'
    """
    for name in map(str.casefold, reversed(folders)):
        if re.search(_MASK, name):
            own = re.search("object|instance|panoptic", name)
            return "instances" if own else "mask"
        if re.search(_IMAGE, name):
            return ""
    return ""


def words_of(folders: Iterable[str]) -> Words:
    """What folders are called, but for what only says that they hold images or masks.

    Example:
        >>> sorted(words_of(["train_masks", "JPEGImages", "Aachen"]))
        ['aachen', 'train']
    """
    names = (re.sub(f"{_MASK}|{_IMAGE}", "", one_form(f).casefold()) for f in folders)
    words = (name.strip(" _.-") for name in names)
    splits = ((word, _SPLIT.fullmatch(word)) for word in words if word)
    return frozenset(split[1] if split else word for word, split in splits)


def split_of(words: Words) -> str:
    """The split that is among the words, or ""."""
    return next((split for split in SPLITS if split in words), "")


def split_of_list(stem: str) -> str:
    """The split that a list of this name, without suffix, names; "" if none.

    Example:
        >>> split_of_list("validation_list"), split_of_list("trainval")
        ('val', '')
    """
    return split_of(words_of([_LIST.sub("", stem.casefold())]))
