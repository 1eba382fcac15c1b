"""Which mask belongs to which image, by the names of files and folders.

A name shows three things: whether a file is a mask or an image, to which split it
belongs, and which sample it is. Words such as images, masks, train, and val are
recognized in the forms that common data sets use; the rest of a name identifies the
sample. Case and Unicode forms are ignored.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff"),
    *(".bmp", ".dib", ".gif", ".webp", ".avif", ".heic", ".heif", ".hif"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
UNREAD_SUFFIXES = (  # of pictures and arrays that Pillow does not read as images
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".jxl", ".mat", ".nef"),
    *(".nii", ".npy", ".npz", ".orf", ".pdf", ".psd", ".raf", ".raw", ".rw2", ".svg"),
    *(".dcm", ".h5", ".hdf5", ".img", ".nrrd", ".pfm", ".qoi", ".xcf"),
)
SPLITS = ("train", "val", "test")
HINT = "choose with --images and --labels: folders, or patterns like '*_mask.png'"

Words = frozenset[str]

_MASK = (
    r"(?<!un)label(?:l?ed|s|ids|trainids)?|masks?|trimaps?|annot[a-z]*|segment[a-z]*"
    r"|semantic|targets?|ground[ _-]?truth|(?<![a-z])(?:gt|gts|gtfine|segs?)(?![a-z])"
)
_IMAGE = r"images?|imgs?|photos?|pictures?|jpe?gs?|rgb|frames?|leftimg8bit"
_SUFFIXES = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_ENDING = re.compile(
    rf"(?:^|[ _.-]+)(?:{_MASK}|{_IMAGE}|colou?r|ome|l)$|^(?:{_MASK}|{_IMAGE})[ _.-]+"
    rf"|\.(?:{_SUFFIXES})$"  # Supervisely's a.jpg has the mask a.jpg.png
)
_MASK_NAME = re.compile(rf"(?:^|[ _.-])(?:{_MASK}|l)$|^(?:{_MASK})[ _.-]")
_SPLIT = re.compile(r"(train|val|test)(?:ing|id|idation)?[ _-]?(?:set)?\d*")
_LIST = re.compile(r"[ _.-]+(?:list|files|pairs|ids|split)$|^(?:list|files)[ _.-]+")
_TWO_FILES = re.compile(
    rf"(.+?\.(?:{_SUFFIXES}))[\s,;]+(\S.*\.(?:{_SUFFIXES}))", re.IGNORECASE
)


class Pair(NamedTuple):
    """An image file and its mask."""

    id: str
    image: Path
    label: Path


def normalized(text: str) -> str:
    """Return text in the Unicode form in which names of all file systems are equal."""
    return unicodedata.normalize("NFC", text)


def sample_name(stem: str) -> str:
    """Return a file's name without suffix, and without words such as _mask at its ends.

    Example:
        >>> [sample_name(s) for s in ("aachen_000019_gtFine_labelIds", "IMG_7", "mask")]
        ['aachen_000019', '7', '']
    """
    stem = normalized(stem).casefold()
    while stem != (shorter := _ENDING.sub("", stem)):
        stem = shorter
    return stem


def is_mask_name(stem: str) -> bool:
    """Whether a file's name marks it as a mask, such as cat_mask and label_12."""
    return bool(_MASK_NAME.search(normalized(stem).casefold()))


_PREVIEW = re.compile(r"visuali[sz]|preview|overlay|masks?[ _-]human")


def folder_kind(folders: Sequence[str]) -> Literal["", "mask", "instances", "preview"]:
    """Return the kind of a folder's files, by its innermost known name; "" is images.

    Example:
        >>> folder_kind(["labels", "images"]), folder_kind(["trainannot"])
        ('', 'mask')
        >>> folder_kind(["SegmentationObject"])
        'instances'
    """
    for name in map(str.casefold, reversed(folders)):
        if _PREVIEW.search(name):
            return "preview"
        if re.search(_MASK, name):
            objects = re.search("object|instance|panoptic", name)
            return "instances" if objects else "mask"
        if re.search(_IMAGE, name):
            return ""
    return ""


def folder_words(folders: Iterable[str]) -> Words:
    """Return the names of folders without the words for images and masks.

    Example:
        >>> sorted(folder_words(["train_masks", "JPEGImages", "Aachen"]))
        ['aachen', 'train']
    """
    names = (re.sub(f"{_MASK}|{_IMAGE}", "", normalized(f).casefold()) for f in folders)
    words = filter(None, (name.strip(" _.-") for name in names))
    return frozenset(m[1] if (m := _SPLIT.fullmatch(word)) else word for word in words)


def split_of(words: Words) -> str:
    """Return the split that is among the words, or ""."""
    return next((split for split in SPLITS if split in words), "")


def split_of_list(stem: str) -> str:
    """Return the split that a list's name, without suffix, means; "" if none.

    Example:
        >>> split_of_list("validation_list"), split_of_list("trainval")
        ('val', '')
    """
    return split_of(folder_words([_LIST.sub("", stem.casefold())]))


class NamedFiles:
    """Finds files by their name, and among equal names by the words of their folders.

    Args:
        paths: the files.
        top: a folder that contains all of them; only folders below it count.
    """

    def __init__(self, paths: Iterable[Path], top: Path):
        self.words = {p: folder_words(p.relative_to(top).parts[:-1]) for p in paths}
        self._same, self._similar = defaultdict(list), defaultdict(list)
        for path in self.words:
            self._same[normalized(path.stem)].append(path)
            self._similar[sample_name(path.stem)].append(path)

    def find(self, stem: str, words: Words, split: str = "") -> list[Path]:
        """Return the files with this, or a similar, name in the nearest folders."""
        same = self._same.get(normalized(stem), [])
        similar = self._similar.get(sample_name(stem), [])
        return self.nearest(same, words, split) or self.nearest(similar, words, split)

    def nearest(
        self, paths: Iterable[Path], words: Words, split: str = ""
    ) -> list[Path]:
        """Return those whose folders have the most of the words, and the fewest others.

        If a split is given, files of other splits are left out.
        """
        ranks = {
            path: (len(words & own), -len(own))
            for path in paths
            if split_of(own := self.words[path]) in ("", split) or not split
        }
        best = max(ranks.values(), default=None)
        return [path for path, rank in ranks.items() if rank == best]

    def look_up(self, text: str, split: str, where: str) -> Path | None:
        """Find a file by its text in a list: a stem, a name, or a path on any machine.

        Args:
            text: the name.
            split: split of the list, which counts unless the text names a split.
            where: the list and the line, for messages.

        Raises:
            ValueError: if several files match.
        """
        path = PurePath(text.replace("\\", "/"))
        has_suffix = path.suffix.lower() in IMAGE_SUFFIXES
        words = folder_words(path.parts[:-1])
        words = words if split_of(words) else words | {split}
        found = self.find(path.stem if has_suffix else path.name, words)
        found = [p for p in found if p.name == path.name] or found
        if len(found) > 1:
            raise ValueError(
                f"{where} could be {found[0]} or {found[1]}; add the folder"
            )
        return found[0] if found else None


class Pairing:
    """Images and their masks; a mask belongs to one image only.

    Args:
        images: all images.
        masks: all masks.

    Attributes:
        image_of: the image of each mask that has been paired.
    """

    def __init__(self, images: NamedFiles, masks: NamedFiles):
        self.images, self.masks = images, masks
        self.image_of: dict[Path, Path] = {}
        self._folders: dict[Words, Path] = {}

    def pair(self, image: Path) -> Pair:
        """Return the pair of an image; without a mask, its label does not exist.

        Raises:
            ValueError: naming the files, if several are possible.
        """
        words = self.images.words[image]
        split = split_of(words)
        found = self.masks.find(image.stem, words, split)
        if len(found) > 1:
            several = ", ".join(map(str, found[:3]))
            raise ValueError(
                f"{image}: has {len(found)} masks, {several}; {HINT}. Masks of one "
                "class each are not read: merge them to class ids"
            )
        if not found:
            if words not in self._folders:
                near = self.masks.nearest(self.masks.words, words, split)
                self._folders[words] = near[0].parent if near else image.parent
            found = [self._folders[words] / f"{image.stem}_mask.png"]
        other = self.image_of.setdefault(found[0], image)
        if other != image:
            raise ValueError(
                f"{found[0]}: could be the mask of both {other} and {image}; {HINT}"
            )
        return Pair(image.stem, image, found[0])

    def from_line(self, line: str, split: str, source: Path) -> Pair | None:
        """Return the pair of a list's line, or None if there is no such file.

        Args:
            line: an image, or an image and its mask.
            split: split of the list.
            source: the list, for messages.

        Raises:
            ValueError: naming the list and the line, if several files match.
        """
        where = f"{source}: {line!r}"
        if two := _TWO_FILES.fullmatch(line):
            image = self.images.look_up(two[1], split, where)
            mask = self.masks.look_up(two[2], split, where)
            return Pair(image.stem, image, mask) if image and mask else None
        # Names may contain spaces, and more text may follow them, as in VOC's lists.
        ends = [match.start() for match in re.finditer(r"[\s,;]+", line)]
        for end in [len(line), *reversed(ends)]:
            if image := self.images.look_up(line[:end], split, where):
                return self.pair(image)
        return None
