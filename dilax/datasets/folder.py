"""Your own images and masks: found in a folder, paired, split and described.

Nothing needs to be renamed. Folders of masks are told from folders of images by their
names, splits by folders or lists that are called train, val and test. A mask belongs to
the image of the same name, up to endings such as `_mask` or `_gtFine_labelIds`.
"""

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dilax.datasets.files import (
    IMAGE_SUFFIXES,
    Pair,
    existing,
    mask_mode,
    read_lines,
    read_mask,
    read_pixels,
)
from dilax.datasets.spec import RGB, DatasetSpec, colour_map

SPLITS = ("train", "val", "test")
_MASKS = re.compile(
    r"label|mask|annot|^gt|gt$|ground_?truth|segmentation|^seg$|target", re.IGNORECASE
)
_ENDING = re.compile(
    r"[ _.-](l|labels?|labelids|labeltrainids|masks?|gt\w*|seg\w*|annot\w*|rgb|image|"
    r"img|color|colour|leftimg8bit)$",
    re.IGNORECASE,
)
_VOID = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}
_MEASURED, _MOST_COLOURS = 500, 255


class Survey(NamedTuple):
    """What a folder holds.

    Attributes:
        spec: classes, palette, mean pixel, label map.
        notes: what was found and chosen, a sentence each.
        sizes: (height, width) → how many of the measured images have it.
    """

    spec: DatasetSpec
    notes: list[str]
    sizes: dict[tuple[int, int], int]


def folder_splits(
    root: Path, images: str = "", labels: str = ""
) -> dict[str, list[Pair]]:
    """The pairs of each split, by name of image.

    Without folders or lists that name a split, a fifth of the images is `val`: the same
    ones whenever the same names are there.

    Args:
        root: the folder.
        images: of the images, below `root`; "" finds it.
        labels: of the masks, below `root`; "" finds it.

    Raises:
        ValueError: if no images or no masks are found, or an image has no mask.
    """
    pictures, masks = _files(existing(root), images, labels)
    taken = {(_split_of(m, root), _key(m)): m for m in masks}
    loose = {_key(m): m for m in masks}
    if len(loose) < len({key for _, key in taken}):
        loose = {}
    found: dict[str, list[Pair]] = {}
    for path in pictures:
        split, key = _split_of(path, root), _key(path)
        mask = taken.get((split, key)) or loose.get(key)
        pair = Pair(path.stem, path, mask or path.with_name(f"{path.stem} (its mask)"))
        found.setdefault(split, []).append(pair)
    return _divided(root, found)


def _files(root: Path, images: str, labels: str) -> tuple[list[Path], list[Path]]:
    """(images, masks) below the root."""
    top = root / labels if labels else root
    every = _below(existing(root / images) if images else root)
    if labels:
        masks = _below(existing(top))
    else:
        masks = [p for p in every if _is_mask(p, root)]
        if images and not masks:
            masks = [p for p in _below(root) if _is_mask(p, root)]
    chosen = set(masks)
    pictures = [
        p for p in every if p not in chosen and (labels or not _is_mask(p, root))
    ]
    if not pictures or not masks:
        folders = sorted({str(p.parent.relative_to(root)) for p in _below(root)})
        missing = "masks" if pictures else "images"
        raise ValueError(
            f"{root}: no {missing} found; folders that hold pictures: {folders}. Name "
            "them with --images=FOLDER --labels=FOLDER"
        )
    return pictures, masks


def _below(folder: Path) -> list[Path]:
    return sorted(
        Path(place) / name
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )


def _is_mask(path: Path, root: Path) -> bool:
    return any(_MASKS.search(part) for part in path.relative_to(root).parts[:-1])


def _key(path: Path) -> str:
    stem = path.stem
    while stem != (shorter := _ENDING.sub("", stem)):
        stem = shorter
    return stem


def _split_of(path: Path, root: Path) -> str:
    for part in path.relative_to(root).parts[:-1]:
        for split in SPLITS:
            if part.lower().startswith(split):
                return split
    return ""


def _divided(root: Path, found: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    """The splits by their folders, else by lists, else by the names' checksums."""
    loose = found.pop("", [])
    if not loose or "train" in found:
        return found
    names = {pair.id: pair for pair in loose} | {_key(p.image): p for p in loose}
    lists = {s: root / f"{s}.txt" for s in SPLITS if (root / f"{s}.txt").is_file()}
    for split, path in lists.items():
        listed = [Path(line.split()[0]).stem for line in read_lines(path)]
        unknown = [name for name in listed if name not in names]
        if unknown:
            raise ValueError(f"{path}: names images that are not there: {unknown[:10]}")
        found[split] = [names[name] for name in listed]
    if "train" not in found:
        order = sorted(loose, key=lambda p: (zlib.crc32(p.id.encode()), p.id))
        held = {p.id for p in order[: max(1, len(loose) // 5)]}
        found["val"] = [p for p in loose if p.id in held]
        found["train"] = [p for p in loose if p.id not in held]
    return found


def survey_folder(
    root: Path, images: str = "", labels: str = "", classes: str = ""
) -> Survey:
    """Measures what training on a folder needs to know.

    Args:
        root: see `folder_splits`, as `images` and `labels`.
        images: folder of the images.
        labels: folder of the masks.
        classes: names, `"sky,tree"`, or a file with a name a line, and the colour of
            its masks behind it, `sky 70 130 180`, where masks are colour images; a
            class called void (or ignore, unlabelled) counts nowhere. "" takes the file
            `classes.txt`, or else what the masks hold.

    Raises:
        ValueError: naming the file, if something cannot be read or does not fit.
    """
    splits = folder_splits(root, images, labels)
    pairs = [pair for listed in splits.values() for pair in listed]
    notes = [", ".join(f"{name}: {len(s)} images" for name, s in splits.items())]
    mean, sizes, about = _measure([p.image for p in splits["train"]])
    masks = [pair.label for pair in pairs if pair.label.exists()]
    if not masks:
        raise ValueError(f"{pairs[0].label}: is missing, and so is every other mask")
    colour = mask_mode(masks[0]) == "colour"
    given = _given_classes(root, classes)
    describe = _colour_classes if colour else _index_classes
    spec = describe(root.resolve().name, given, masks, mean)
    kind = "colours" if colour else "class ids"
    notes += [about, f"masks hold {kind}; {spec.num_classes} classes: "]
    notes[-1] += ", ".join(spec.classes[:20]) + (" …" * (spec.num_classes > 20))
    notes += _remarks(spec)
    return Survey(spec, notes, sizes)


def _remarks(spec: DatasetSpec) -> Iterator[str]:
    if spec.label_map and (255, 1) in spec.label_map:
        yield "masks hold only 0 and 255, so 255 is taken as a class, not as ignored"
    if spec.void_colours:
        yield f"ignored colours: {', '.join(map(str, spec.void_colours))}"


def _measure(
    paths: Sequence[Path],
) -> tuple[tuple[float, ...], dict[tuple[int, int], int], str]:
    """(mean pixel in reversed channel order, sizes, a sentence)."""
    some = paths[:: max(1, len(paths) // _MEASURED)][:_MEASURED]
    first = read_pixels(some[0])
    channels = first.shape[2]
    total, count, sizes = np.zeros(channels), 0, Counter[tuple[int, int]]()
    for pixels in _each("mean pixel", lambda p: read_pixels(p, channels), some):
        scale = 257 if pixels.dtype == np.uint16 else 1
        total += pixels.sum((0, 1), dtype=np.float64) / scale
        count += pixels.shape[0] * pixels.shape[1]
        sizes[pixels.shape[:2]] += 1
    mean = tuple(round(float(v), 4) for v in (total / count)[::-1])
    (height, width), most = sizes.most_common(1)[0]
    about = (
        f"{channels} channels of {8 * first.itemsize} bits; {most} of {len(some)} "
        f"images looked at are {width}x{height}; mean pixel (channels reversed) {mean}"
    )
    return mean, dict(sizes), about


def _each(title: str, function, items: Sequence[Path]) -> Iterator:
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(function, items)
        yield from tqdm(results, title, len(items), unit="image", delay=1)


def _given_classes(root: Path, classes: str) -> list[tuple[str, RGB | None]]:
    """(name, colour) of the classes that the user names."""
    path = Path(classes).expanduser() if classes else root / "classes.txt"
    if "," in classes:
        lines: Iterable[str] = [c.strip() for c in classes.split(",")]
    elif classes or path.exists():
        lines = read_lines(path if path.exists() else root / classes)
    else:
        return []
    given = [_named_class(line, path) for line in lines]
    names = [name for name, _ in given if name.lower() not in _VOID]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: names {', '.join(twice)} more than once")
    if len(names) > 255:
        raise ValueError(f"{path}: {len(names)} classes are more than 255")
    return given


def _named_class(line: str, path: Path) -> tuple[str, RGB | None]:
    match = re.fullmatch(r"(.*\S)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)", line)
    if not match:
        return line, None
    red, green, blue = (int(v) for v in match.groups()[1:])
    if max(red, green, blue) > 255:
        raise ValueError(f"{path}: {line!r}: a colour is three numbers 0..255")
    return match[1], (red, green, blue)


def _index_classes(
    name: str,
    given: list[tuple[str, RGB | None]],
    masks: Sequence[Path],
    mean: tuple[float, ...],
) -> DatasetSpec:
    """The classes of masks that hold ids."""
    if given:
        names = tuple(n for n, _ in given if n.lower() not in _VOID)
        shown = zip(given, colour_map(len(given)), strict=True)
        palette = tuple(c or own for (n, c), own in shown if n.lower() not in _VOID)
        ids = [i for i, (n, _) in enumerate(given) if n.lower() not in _VOID]
        pairs = [(i, at) for at, i in enumerate(ids)]
        voids = [(i, 255) for i in range(len(given)) if i not in ids]
        label_map = tuple(pairs + voids) if voids else ()
        return DatasetSpec(name, names, palette, mean, label_map=label_map)
    counts = np.zeros(256, np.int64)
    for array in _each("classes", lambda path: read_mask(path), masks):
        counts += np.bincount(array.ravel(), minlength=256)
    found = np.flatnonzero(counts).tolist()
    if found != [0, 255] and 255 in found:
        found.remove(255)
    names = tuple(f"id {i}" for i in found)
    mapped = tuple((i, at) for at, i in enumerate(found))
    mapped = () if found == list(range(len(found))) else mapped
    return DatasetSpec(name, names, colour_map(len(found)), mean, label_map=mapped)


def _colour_classes(
    name: str,
    given: list[tuple[str, RGB | None]],
    masks: Sequence[Path],
    mean: tuple[float, ...],
) -> DatasetSpec:
    """The classes of masks that hold colours."""
    if given and all(colour for _, colour in given):
        kept = [(n, c) for n, c in given if n.lower() not in _VOID]
        void = tuple(c for n, c in given if n.lower() in _VOID and c)
        names = tuple(n for n, _ in kept)
        palette = tuple(c for _, c in kept if c)
        return DatasetSpec(name, names, palette, mean, void_colours=void)
    found: set[RGB] = set()
    for colours in _each("classes", _colours, masks):
        found |= colours
        if len(found) > _MOST_COLOURS:
            raise ValueError(
                f"{masks[0].parent}: masks hold more than {_MOST_COLOURS} colours; are "
                "they photographs, or stored with loss (JPEG)? Save them as PNG"
            )
    ordered = sorted(found)
    if given:
        raise ValueError(
            "--classes: masks are colour images; write a colour behind each name, such "
            f"as '{given[0][0]} {' '.join(map(str, ordered[0]))}'. They hold {ordered}"
        )
    names = tuple("#{:02x}{:02x}{:02x}".format(*c) for c in ordered)
    return DatasetSpec(name, names, tuple(ordered), mean)


def _colours(path: Path) -> set[RGB]:
    image = read_mask(path).reshape(-1, 3).astype(np.uint32)
    packed = np.unique(image @ np.array([1 << 16, 1 << 8, 1], np.uint32))
    return {(int(c >> 16), int(c >> 8) & 255, int(c) & 255) for c in packed}
