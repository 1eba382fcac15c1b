"""Your own images and masks: found in a folder, paired, and split.

Nothing needs to be renamed. Masks are recognized by the names of their folders, or else
by their own names; splits by folders or lists called train, val, and test. A mask
belongs to the image of the same name, apart from endings such as `_mask`; of several
masks, it is the one whose folders have the most words in common with those of the
image.
"""

import glob
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dilax.data.lists import LIST_SUFFIXES, find_lists
from dilax.data.pairing import (
    HINT,
    IMAGE_SUFFIXES,
    SPLITS,
    UNREAD_SUFFIXES,
    NamedFiles,
    Pair,
    Pairing,
    folder_kind,
    is_mask_name,
    normalized,
    split_of,
)


class Folder(NamedTuple):
    """The content of a folder.

    Attributes:
        splits: the pairs of each split, in order of the images' paths or of the list.
            For an image without a mask, the mask is a path that does not exist.
        notes: what was found and decided, one sentence each.
    """

    splits: dict[str, list[Pair]]
    notes: list[str]


# What an error says of the folders with pictures of each kind.
_PLACES = {
    "": "there are pictures",
    "mask": "found masks",
    "instances": "masks of instances",
    "preview": "previews of masks",
}

# The content of a folder, and when its folders and lists were modified.
_known: dict[tuple[Path, str, str], tuple[Folder, dict[Path, int]]] = {}


def read_folder(data_dir: str | Path, images: str = "", labels: str = "") -> Folder:
    """Find the images and masks of a folder.

    If no folder or list is called val, a fifth of the training images becomes val,
    always the same ones for the same names. A process lists a folder once, and again
    only after it changes.

    Args:
        data_dir: the folder.
        images: a folder of the images, or a pattern of their names; "" finds them.
        labels: the same for the masks.

    Raises:
        ValueError: if there are no images or no masks, if it is ambiguous which belong
            together, or if a list names files that do not exist.

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
        raise ValueError("--data_dir: give the folder of images and masks")
    root = Path(os.path.abspath(Path(data_dir).expanduser()))
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; set it with --data_dir")
    key = root, images, labels
    found, seen = _known.get(key, (None, {}))
    if found and all(_modified(path) == at for path, at in seen.items()):
        return found
    seen = {}
    found = _paired(root, images, labels, seen)
    # File systems round times by up to 2 s; a later change must have a later time.
    if time.time_ns() - max(seen.values()) > 2e9:
        _known[key] = found, seen
    return found


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _walk(folder: Path, seen: dict[Path, int]) -> list[Path]:
    """Return all files, except hidden ones and the folders of runs.

    The times at which folders and lists were modified are added to `seen`.
    """
    found: list[Path] = []
    for name, below, names in os.walk(folder, followlinks=True):
        if {"config.json", "spec.json"} <= {*names}:
            below.clear()
            continue
        below[:] = [name for name in below if not name.startswith(".")]
        files = [Path(name, file) for file in names if not file.startswith(".")]
        lists = [path for path in files if path.suffix.lower() in LIST_SUFFIXES]
        seen |= {path: _modified(path) for path in (Path(name), *lists)}
        found += files
    return sorted(found)


def _paired(root: Path, images: str, labels: str, seen: dict[Path, int]) -> Folder:
    """Return images and masks, paired and split, with notes for the user."""
    files = _walk(root, seen)
    roles = _images_and_masks(root, files, images, labels, seen)
    top = Path(os.path.commonpath([path.parent for role in roles for path in role]))
    pairing = Pairing(*(NamedFiles(role, top) for role in roles))
    lists = find_lists(root, files)
    found = _split(root, pairing, lists)
    photos, masks = pairing.images.words, pairing.masks.words
    example = next((pair for pair in found["train"] if pair.label in masks), None)
    if not example:
        image, mask = found["train"][0].image, next(iter(masks))
        raise ValueError(
            f"{root}: the names of images and masks do not match, such as {image} and "
            f"{mask}; {HINT}, or list them in train.txt, both files on one line"
        )
    shown = [os.path.relpath(path, root) for path in (example.image, example.label)]
    notes = ["{} has the mask {}".format(*shown)]
    if left := len(photos) - sum(map(len, found.values())):
        notes.append(f"images in no split: {left}")
    if others := _of_kinds(UNREAD_SUFFIXES, files):
        kinds = sorted({path.suffix.lower() for path in others})
        notes.append(
            f"not read: {len(others)} files of the kinds {', '.join(kinds)}, such as "
            f"{others[0]}; if they are images, convert them"
        )
    unused = [mask for mask in masks if mask not in pairing.image_of]
    if unused and not lists:
        notes.append(f"masks without an image: {len(unused)}, such as {unused[0]}")
    if "val" not in found:
        found["train"], found["val"] = _hold_out(found["train"], top)
        notes.append(
            f"no images are called val, so a fifth of train, {len(found['val'])}, is "
            "held out; if they are frames of videos, list frames of others in val.txt"
        )
    splits = {split: found[split] for split in SPLITS if split in found}
    counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items())
    return Folder(splits, [f"images: {counts}", *notes])


def _images_and_masks(
    root: Path, files: Sequence[Path], images: str, labels: str, seen: dict[Path, int]
) -> tuple[list[Path], list[Path]]:
    """Return the files that the flags choose, or that the names suggest."""
    every = _of_kinds(IMAGE_SUFFIXES, files)

    def chosen(flag: str) -> list[Path]:
        folder = Path(os.path.normpath(root / flag))
        if folder.is_dir():
            found = _of_kinds(IMAGE_SUFFIXES, _walk(folder, seen))
        else:
            pattern = literal_parts(flag, root)
            found = [path for path in every if path.relative_to(root).match(pattern)]
        if not found:
            raise ValueError(f"{folder}: no such folder or files; {HINT}")
        return found

    masks = chosen(labels) if labels else []
    photos = _without(chosen(images), masks) if images else []
    free = _without(every, photos)
    kinds = {path: folder_kind(path.relative_to(root).parts[:-1]) for path in every}
    if not masks:
        # PNGs next to files of another format with the same name are masks, too.
        pngs = _of_kinds([".png"], free)
        others = {path.with_suffix("") for path in _without(free, pngs)}
        masks = (
            [path for path in free if kinds[path] == "mask"]
            or [path for path in free if is_mask_name(path.stem)]
            or [path for path in pngs if path.with_suffix("") in others]
        )
    if not images:
        free = _without(free, masks)
        beside = {path.parent for path in masks}
        photos = [path for path in free if not kinds[path]] or [
            path for path in free if kinds[path] == "mask" and path.parent in beside
        ]
    if photos and masks:
        return photos, masks
    folders: dict[str, set[str]] = defaultdict(set)
    for path, kind in kinds.items():
        folders[kind].add(str(path.parent.relative_to(root)))
    found = ", ".join(
        f"{words} in {sorted(folders[kind])[:10]}"
        for kind, words in _PLACES.items()
        if kind in folders
    )
    missing, remedy = "masks" if photos else "images", HINT
    if not photos:
        remedy += "; images may be in another folder, --images=FOLDER"
    elif polygons := _of_kinds((".json", ".xml"), files):
        remedy += (
            f". Annotations such as {polygons[0]} are not masks: export masks from the "
            "program that drew them"
        )
    raise ValueError(
        f"{root}: no {missing} found; {found or 'it contains no pictures'}; {remedy}"
    )


def literal_parts(pattern: str, root: Path) -> str:
    """Return a pattern whose first parts are literal, as far as such a path exists.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "set [v1]").mkdir()
        ...     literal_parts("set [v1]/*.jpg", Path(folder))
        'set [[]v1]/*.jpg'
    """
    place, parts = root, list(Path(pattern).parts)
    for i, part in enumerate(parts):
        place /= part
        if not place.exists():
            break
        parts[i] = glob.escape(part)
    return os.path.join(*parts)


def _of_kinds(suffixes: Sequence[str], paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in suffixes]


def _without(paths: list[Path], others: list[Path]) -> list[Path]:
    known = set(others)
    return [path for path in paths if path not in known]


def _split(
    root: Path, pairing: Pairing, lists: dict[str, tuple[Path, list[str]]]
) -> dict[str, list[Pair]]:
    """Return the splits by lists, else by folders; the other files are for training."""
    found = {}
    for split, (path, lines) in lists.items():
        pairs = {line: pairing.from_line(line, split, path) for line in lines}
        if missing := [line for line, pair in pairs.items() if not pair]:
            raise ValueError(
                f"{path}: names {len(missing)} files that do not exist, such as "
                f"{missing[:5]}; correct it, or rename it if it is not a list"
            )
        found[split] = [pair for pair in pairs.values() if pair]
    listed = {pair.image for pairs in found.values() for pair in pairs}
    rest = defaultdict(list)
    for image, words in pairing.images.words.items():
        split = split_of(words)
        if image not in listed and (split or "train") not in found:
            pair = pairing.pair(image)
            mask_words = pairing.masks.words.get(pair.label, frozenset())
            rest[split or split_of(mask_words)].append(pair)
    loose = rest.pop("", [])
    found = {**rest, **found}
    if loose:
        found.setdefault("train", loose)
    if "train" not in found:
        raise ValueError(
            f"{root}: has only the splits {[*found]}; call the folder or list of "
            "training images train"
        )
    return found


def _hold_out(pairs: list[Pair], top: Path) -> tuple[list[Pair], list[Pair]]:
    """Return (four fifths, a fifth), drawn by the checksums of the names."""

    def order(pair: Pair) -> tuple[int, str]:
        name = os.path.relpath(pair.image, top)
        return zlib.crc32(normalized(name).encode()), name

    if len(pairs) < 2:
        raise ValueError(
            f"{pairs[0].image}: one image is too few to train and evaluate"
        )
    held_out = {*sorted(pairs, key=order)[: max(1, len(pairs) // 5)]}
    return [p for p in pairs if p not in held_out], [p for p in pairs if p in held_out]
