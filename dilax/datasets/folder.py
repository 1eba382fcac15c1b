"""Your own images and masks: found in a folder, paired, and split.

Nothing needs to be renamed. Masks are told from images by the names of their folders,
or else by their own; splits by folders or lists that are called train, val and test. A
mask belongs to the image of the same name, up to endings such as `_mask`; of several,
the one whose folders have the most words in common with the image's.
"""

import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from dilax.datasets.files import IMAGE_SUFFIXES, Pair, read_lines
from dilax.datasets.naming import (
    SPLITS,
    Words,
    core_of,
    is_mask_name,
    kind_of,
    one_form,
    split_of,
    split_of_list,
    words_of,
)

_SUFFIXES = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_TWO_FILES = re.compile(
    rf"(.+?\.(?:{_SUFFIXES}))[\s,;]+(\S.*\.(?:{_SUFFIXES}))", re.IGNORECASE
)
_REMEDY = "say which by --images and --labels: folders, or patterns like '*_mask.png'"


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        splits: the pairs of each split, in order of the images' paths or of the list.
            Of an image without a mask, the mask is a file that is not there.
        notes: what was found and decided, a sentence each.
    """

    splits: dict[str, list[Pair]]
    notes: list[str]


def read_folder(data_dir: str | Path, images: str = "", labels: str = "") -> Folder:
    """Finds the images and masks of a folder.

    Where no folder or list is called val, it is a fifth of the images to train on: the
    same ones whenever the same names are there.

    Args:
        data_dir: the folder.
        images: a folder of the images, or a pattern of their names; "" looks for them.
        labels: of the masks, as `images`.

    Raises:
        ValueError: if there are no images or no masks, if it is not clear which belong
            together, or if a list names files that are not there.
    """
    if not data_dir:
        raise ValueError("--data_dir: the folder of images and masks is missing")
    root = Path(data_dir).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give it with --data_dir")
    files = sorted(_walk(root))
    found = _roles(root, files, images, labels)
    top = Path(os.path.commonpath([path.parent for kind in found for path in kind]))
    pictures, masks = (_Files(kind, top) for kind in found)
    return _divided(root, _Pairing(pictures, masks), _lists(root, files))


def _walk(folder: Path) -> Iterator[Path]:
    """All files, but for hidden ones and the folders of runs."""
    for place, below, names in os.walk(folder, followlinks=True):
        if {"config.json", "spec.json"} <= {*names}:
            below.clear()
            continue
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _pictures(files: Iterable[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


# Which are images, and which are masks.


def _roles(
    root: Path, files: Sequence[Path], images: str, labels: str
) -> tuple[list[Path], list[Path]]:
    """(images, masks)."""
    every = _pictures(files)
    pictures = _chosen(root, every, images) if images else []
    free = _without(every, pictures)
    masks = _chosen(root, every, labels) if labels else _look_for_masks(root, free)
    if not images:
        free = _without(free, masks)
        pictures = [path for path in free if not _kind(path, root)] or free
    if pictures and masks:
        return pictures, masks
    folders = sorted({str(path.parent.relative_to(root)) for path in every})
    missing = "masks" if pictures else "images"
    raise ValueError(
        f"{root}: no {missing} found; there are pictures in {folders[:10]}; {_REMEDY}"
    )


def _without(paths: list[Path], others: list[Path]) -> list[Path]:
    known = set(others)
    return [path for path in paths if path not in known]


def _chosen(root: Path, every: list[Path], where: str) -> list[Path]:
    folder = Path(os.path.normpath(root / where))
    if folder.is_dir():
        found = sorted(_pictures(_walk(folder)))
    else:
        found = [path for path in every if path.relative_to(root).match(where)]
    if not found:
        raise ValueError(f"{folder}: no such folder or files; {_REMEDY}")
    return found


def _look_for_masks(root: Path, every: list[Path]) -> list[Path]:
    by_folder = [path for path in every if _kind(path, root) == "mask"]
    by_name = [path for path in every if is_mask_name(path.stem)]
    return by_folder or by_name or _twins(every)


def _kind(path: Path, root: Path) -> str:
    return kind_of(path.relative_to(root).parts[:-1])


def _twins(every: list[Path]) -> list[Path]:
    """PNGs beside files of another format with the same name."""
    others = {p.with_suffix("") for p in every if p.suffix.lower() != ".png"}
    return [
        p for p in every if p.suffix.lower() == ".png" and p.with_suffix("") in others
    ]


# Which belong together.


class _Files:
    """Files by name; of those of one name, by the words of their folders."""

    def __init__(self, paths: Iterable[Path], top: Path):
        self.top = top
        self.words: dict[Path, Words] = {}
        self._same, self._alike = defaultdict(list), defaultdict(list)
        for path in paths:
            self.words[path] = words_of(path.relative_to(top).parts[:-1])
            self._same[one_form(path.stem)].append(path)
            self._alike[core_of(path.stem)].append(path)

    def find(self, stem: str, words: Words) -> list[Path]:
        """The files of this name, or a like one, in the folders that are nearest."""
        same = self._same.get(one_form(stem))
        return self.nearest(same or self._alike.get(core_of(stem), []), words)

    def nearest(self, paths: Iterable[Path], words: Words) -> list[Path]:
        """Those with the most words in common, and the fewest others."""
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


class _Pairing:
    """Images and their masks."""

    def __init__(self, images: _Files, masks: _Files):
        self.images, self.masks = images, masks
        self._taken: dict[Path, Path] = {}
        self._folders: dict[Words, Path] = {}

    def pair(self, image: Path) -> Pair:
        """The pair of an image, by names."""
        words = self.images.words[image]
        found = self.masks.find(image.stem, words)
        found = [m for m in found if not _apart(words, self.masks.words[m])]
        if len(found) > 1:
            raise ValueError(
                f"{image}: has {len(found)} masks, {', '.join(map(str, found[:3]))}; "
                f"{_REMEDY}"
            )
        mask = found[0] if found else self._missing(image, words)
        other = self._taken.setdefault(mask, image)
        if other != image:
            raise ValueError(
                f"{mask}: is the mask of {other} and of {image}; {_REMEDY}"
            )
        return Pair(image.stem, image, mask)

    def _missing(self, image: Path, words: Words) -> Path:
        if words not in self._folders:
            nearest = self.masks.nearest(self.masks.words, words)
            self._folders[words] = nearest[0].parent
        return self._folders[words] / f"{image.stem}.png"

    def unused(self) -> list[Path]:
        """The masks that no image has."""
        return [mask for mask in self.masks.words if mask not in self._taken]

    def listed(self, line: str, split: str, path: Path) -> Pair | None:
        """The pair that a line of a list means, or None if there is no such file."""
        if two := _TWO_FILES.fullmatch(line):
            image = _only(self.images.look_up(two[1], split), line, path)
            mask = _only(self.masks.look_up(two[2], split), line, path)
            return Pair(image.stem, image, mask) if image and mask else None
        ends = [match.start() for match in re.finditer(r"[\s,;]+", line)]
        for end in [len(line), *reversed(ends)]:
            if found := self.images.look_up(line[:end], split):
                image = _only(found, line, path)
                return self.pair(image) if image else None
        return None


def _apart(one: Words, other: Words) -> bool:
    """Whether two files are in different splits."""
    splits = {split_of(one), split_of(other)}
    return len(splits - {""}) > 1


def _only(found: list[Path], line: str, path: Path) -> Path | None:
    if len(found) > 1:
        raise ValueError(
            f"{path}: {line!r} may mean {found[0]} or {found[1]}; write folders, too"
        )
    return found[0] if found else None


# Which are to train on, and which to evaluate on.


def _lists(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """The list of each split that has one."""
    found = defaultdict(list)
    for path in files:
        if path.suffix.lower() == ".txt" and (split := split_of_list(path.stem)):
            found[split].append(path)
    return {split: _the_list(root, paths) for split, paths in found.items()}


def _the_list(root: Path, paths: list[Path]) -> Path:
    """The outermost; of several, that in a folder such as ImageSets/Segmentation."""
    least = min(len(path.parts) for path in paths)
    outer = [path for path in paths if len(path.parts) == least]
    chosen = [path for path in outer if _kind(path, root)] or outer
    if len(chosen) > 1:
        raise ValueError(
            f"{chosen[0]}, {chosen[1]}: which is the list? Give the others other names"
        )
    return chosen[0]


def _read_list(path: Path, split: str, pairing: _Pairing) -> list[Pair]:
    pairs = {line: pairing.listed(line, split, path) for line in read_lines(path)}
    if missing := [line for line, pair in pairs.items() if not pair]:
        raise ValueError(
            f"{path}: names {len(missing)} files that are not there, such as "
            f"{missing[:5]}; correct it, or give it another name if it is no list"
        )
    return [pair for pair in pairs.values() if pair]


def _divided(root: Path, pairing: _Pairing, lists: dict[str, Path]) -> Folder:
    """The splits by lists, else by folders, else by the names' checksums."""
    found = {s: _read_list(path, s, pairing) for s, path in lists.items()}
    listed = {pair.image for pairs in found.values() for pair in pairs}
    rest = defaultdict(list)
    for image, words in pairing.images.words.items():
        split = split_of(words)
        if image not in listed and (split or "train") not in found:
            pair = pairing.pair(image)
            own = pairing.masks.words.get(pair.label, frozenset())
            rest[split or split_of(own)].append(pair)
    loose = rest.pop("", [])
    found = {**rest, **found}
    if loose:
        found.setdefault("train", loose)
    if "train" not in found:
        raise ValueError(f"{root}: has only {[*found]}; call what to train on train")
    notes = _remarks(root, pairing, found, lists)
    if "val" not in found:
        found["train"], found["val"] = _held_back(found["train"], pairing.images.top)
        notes.append(
            f"no images are called val, so a fifth of train, {len(found['val'])}, is "
            "held back; if they are frames of videos, list others in val.txt"
        )
    splits = {split: found[split] for split in SPLITS if split in found}
    counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items())
    return Folder(splits, [f"images: {counts}", *notes])


def _remarks(
    root: Path, pairing: _Pairing, found: dict[str, list[Pair]], lists: dict[str, Path]
) -> list[str]:
    """An example of a pair, and what is in no pair."""
    masks = pairing.masks.words
    example = next((pair for pair in found["train"] if pair.label in masks), None)
    if not example:
        image, mask = found["train"][0].image, next(iter(masks))
        raise ValueError(
            f"{root}: no mask is called as its image is, such as {image} and {mask}; "
            f"{_REMEDY}, or list them in train.txt, both files a line"
        )
    files = [os.path.relpath(path, root) for path in example[1:]]
    notes = ["{} has the mask {}".format(*files)]
    if left := len(pairing.images.words) - sum(map(len, found.values())):
        notes.append(f"images in no split: {left}")
    if not lists and (unused := pairing.unused()):
        notes.append(f"masks without an image: {len(unused)}, such as {unused[0]}")
    return notes


def _held_back(pairs: list[Pair], top: Path) -> tuple[list[Pair], list[Pair]]:
    """(four fifths, a fifth), drawn by the checksums of the names."""

    def order(pair: Pair) -> tuple[int, str]:
        name = os.path.relpath(pair.image, top)
        return zlib.crc32(one_form(name).encode()), name

    if len(pairs) < 2:
        raise ValueError(
            f"{pairs[0].image}: one image is too few to train and evaluate"
        )
    held = {*sorted(pairs, key=order)[: max(1, len(pairs) // 5)]}
    return [p for p in pairs if p not in held], [p for p in pairs if p in held]
