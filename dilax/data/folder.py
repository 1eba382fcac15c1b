"""Your own images and masks: found in a folder, paired, and split.

Nothing needs to be renamed. Masks are told from images by the names of their folders,
or else by their own; splits by folders or lists that are called train, val and test. A
mask belongs to the image of the same name, up to endings such as `_mask`; of several,
the one whose folders have the most words in common with the image's.
"""

import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dilax.data.image_files import IMAGE_SUFFIXES, Pair, read_lines
from dilax.data.pairing import (
    REMEDY,
    SPLITS,
    NamedFiles,
    Pairing,
    is_mask_name,
    kind_of,
    one_form,
    split_of,
    split_of_list,
)


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        splits: the pairs of each split, in order of the images' paths or of the list.
            Of an image without a mask, the mask is a file that is not there.
        notes: what was found and decided, a sentence each.

    Example:
        >>> Folder({"train": [], "val": []}, ["no images yet"]).notes
        ['no images yet']
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

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     names = ("images/train", "images/val", "labels/train", "labels/val")
        ...     for part in names:
        ...         Path(folder, part).mkdir(parents=True)
        ...         Image.new("L", (4, 3)).save(Path(folder, part, "a.png"))
        ...     splits = read_folder(folder).splits
        >>> {split: len(pairs) for split, pairs in splits.items()}
        {'train': 1, 'val': 1}
    """
    if not data_dir:
        raise ValueError("--data_dir: the folder of images and masks is missing")
    root = Path(os.path.abspath(Path(data_dir).expanduser()))
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give it with --data_dir")
    files = sorted(_walk(root))
    roles = _roles(root, files, images, labels)
    top = Path(os.path.commonpath([path.parent for role in roles for path in role]))
    pairing = Pairing(*(NamedFiles(role, top) for role in roles))
    lists = _lists(root, files)
    found = _divided(root, pairing, lists)
    notes = _remarks(root, pairing, found, bool(lists))
    if "val" not in found:
        found["train"], found["val"] = _held_back(found["train"], top)
        notes.append(
            f"no images are called val, so a fifth of train, {len(found['val'])}, is "
            "held back; if they are frames of videos, list others in val.txt"
        )
    splits = {split: found[split] for split in SPLITS if split in found}
    counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items())
    return Folder(splits, [f"images: {counts}", *notes])


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
    masks = _chosen(root, every, labels) if labels else []
    pictures = _without(_chosen(root, every, images), masks) if images else []
    free = _without(every, pictures)
    masks = masks or _look_for_masks(root, free)
    if not images:
        free = _without(free, masks)
        pictures = [path for path in free if not _kind(path, root)] or free
    if pictures and masks:
        return pictures, masks
    folders = sorted({str(path.parent.relative_to(root)) for path in every})
    missing = "masks" if pictures else "images"
    raise ValueError(
        f"{root}: no {missing} found; there are pictures in {folders[:10]}; {REMEDY}"
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
        raise ValueError(f"{folder}: no such folder or files; {REMEDY}")
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


def _read_list(path: Path, split: str, pairing: Pairing) -> list[Pair]:
    pairs = {line: pairing.listed(line, split, path) for line in read_lines(path)}
    if missing := [line for line, pair in pairs.items() if not pair]:
        raise ValueError(
            f"{path}: names {len(missing)} files that are not there, such as "
            f"{missing[:5]}; correct it, or give it another name if it is no list"
        )
    return [pair for pair in pairs.values() if pair]


def _divided(
    root: Path, pairing: Pairing, lists: dict[str, Path]
) -> dict[str, list[Pair]]:
    """The splits by lists, else by folders; what is in none is to train on."""
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
    return found


def _remarks(
    root: Path, pairing: Pairing, found: dict[str, list[Pair]], listed: bool
) -> list[str]:
    """An example of a pair, and how many files are in none."""
    masks = pairing.masks.words
    example = next((pair for pair in found["train"] if pair.label in masks), None)
    if not example:
        image, mask = found["train"][0].image, next(iter(masks))
        raise ValueError(
            f"{root}: no mask is called as its image is, such as {image} and {mask}; "
            f"{REMEDY}, or list them in train.txt, both files a line"
        )
    files = [os.path.relpath(path, root) for path in (example.image, example.label)]
    notes = ["{} has the mask {}".format(*files)]
    if left := len(pairing.images.words) - sum(map(len, found.values())):
        notes.append(f"images in no split: {left}")
    if not listed and (unused := pairing.unused()):
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
