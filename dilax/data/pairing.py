"""Which mask belongs to which image, by the names of files and folders.

What the names of files and folders say: mask or image, which split, which sample.

Words such as images, masks, train and val are known in the forms that data sets give
them; the rest of a name tells samples apart. Case and Unicode forms count for nothing.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Literal

from dilax.data.image_files import IMAGE_SUFFIXES, Pair

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


REMEDY = "say which by --images and --labels: folders, or patterns like '*_mask.png'"
_SUFFIXES = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_TWO_FILES = re.compile(
    rf"(.+?\.(?:{_SUFFIXES}))[\s,;]+(\S.*\.(?:{_SUFFIXES}))", re.IGNORECASE
)


class NamedFiles:
    """Files by name; of those of one name, by the words of their folders.

    Args:
        paths: the files.
        top: a folder above all; only what is below counts.
    """

    def __init__(self, paths: Iterable[Path], top: Path):
        self.words: dict[Path, Words] = {}
        self._same, self._alike = defaultdict(list), defaultdict(list)
        for path in paths:
            self.words[path] = words_of(path.relative_to(top).parts[:-1])
            self._same[one_form(path.stem)].append(path)
            self._alike[core_of(path.stem)].append(path)

    def find(
        self, stem: str, words: Words, fits: Callable[[Path], bool] = lambda path: True
    ) -> list[Path]:
        """The files of this name, or else of like names, in the nearest folders."""
        same = self._same.get(one_form(stem), [])
        alike = self._alike.get(core_of(stem), [])
        return self.nearest([*filter(fits, same)] or [*filter(fits, alike)], words)

    def nearest(self, paths: Iterable[Path], words: Words) -> list[Path]:
        """Those whose folders have the most of the words, and the fewest others."""
        ranks = {p: (len(words & (w := self.words[p])), -len(w)) for p in paths}
        best = max(ranks.values(), default=None)
        return [path for path, rank in ranks.items() if rank == best]

    def look_up(self, text: str, split: str) -> list[Path]:
        """The files that a list means: by their stem, name, or path on any machine."""
        path = PurePath(text.replace("\\", "/"))
        suffixed = path.suffix.lower() in IMAGE_SUFFIXES
        words = words_of(path.parts[:-1])
        words = words if split_of(words) else words | {split}
        found = self.find(path.stem if suffixed else path.name, words)
        return [p for p in found if p.name == path.name] or found


class Pairing:
    """Images and their masks, each the mask of one image.

    Args:
        images: all images.
        masks: all masks.
    """

    def __init__(self, images: NamedFiles, masks: NamedFiles):
        self.images, self.masks = images, masks
        self._taken: dict[Path, Path] = {}
        self._folders: dict[Words, Path] = {}

    def pair(self, image: Path) -> Pair:
        """The pair of an image; if it has no mask, with a file that is not there.

        Raises:
            ValueError: naming the files, if several are possible.
        """
        words = self.images.words[image]
        found = self.masks.find(image.stem, words, self._in_split(words))
        if len(found) > 1:
            several = ", ".join(map(str, found[:3]))
            raise ValueError(f"{image}: has {len(found)} masks, {several}; {REMEDY}")
        mask = found[0] if found else self._missing(image, words)
        other = self._taken.setdefault(mask, image)
        if other != image:
            raise ValueError(f"{mask}: is the mask of {other} and of {image}; {REMEDY}")
        return Pair(image.stem, image, mask)

    def _in_split(self, words: Words) -> Callable[[Path], bool]:
        """Whether a mask may belong to an image, by their splits."""
        own = split_of(words)
        return lambda mask: not own or split_of(self.masks.words[mask]) in ("", own)

    def _missing(self, image: Path, words: Words) -> Path:
        """Where the mask would be."""
        if words not in self._folders:
            near = filter(self._in_split(words), self.masks.words)
            nearest = self.masks.nearest(near, words)
            self._folders[words] = nearest[0].parent if nearest else image.parent
        return self._folders[words] / f"{image.stem}_mask.png"

    def unused(self) -> list[Path]:
        """The masks that no image has."""
        return [mask for mask in self.masks.words if mask not in self._taken]

    def listed(self, line: str, split: str, path: Path) -> Pair | None:
        """The pair that a line of a list means, or None if there is no such file.

        Args:
            line: an image, or an image and its mask.
            split: that the list is of.
            path: of the list, for messages.

        Raises:
            ValueError: naming the list and the line, if it may mean several files.
        """
        if two := _TWO_FILES.fullmatch(line):
            image = _only(self.images.look_up(two[1], split), line, path)
            mask = _only(self.masks.look_up(two[2], split), line, path)
            return Pair(image.stem, image, mask) if image and mask else None
        ends = [match.start() for match in re.finditer(r"[\s,;]+", line)]
        for end in [len(line), *reversed(ends)]:
            if image := _only(self.images.look_up(line[:end], split), line, path):
                return self.pair(image)
        return None


def _only(found: list[Path], line: str, path: Path) -> Path | None:
    if len(found) > 1:
        raise ValueError(
            f"{path}: {line!r} may mean {found[0]} or {found[1]}; write folders, too"
        )
    return found[0] if found else None
