"""Images and labels on disk as a random-access source, in three layouts.

A source is a sequence of `{"image": (h, w, 3) uint8 RGB, "label": (h, w) uint8, "id"}`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from dilax.datasets.spec import DatasetSpec, colour_map

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_SKIP = "--config.data.skip_unreadable=True trains without such files"


class Pair(NamedTuple):
    """An image file and its label file."""

    id: str
    image: Path
    label: Path


class ImageLabelFiles(Sequence):
    """A source that reads pairs of files, and names the file when one is not right.

    Headers are read at once: that both files exist, are images, and agree in size.
    Pixels are read on access. An image whose pixels turn out to be unreadable raises,
    or, with `skip_unreadable`, is named once in the log and given with a label of
    nothing but `ignore_label`, so that it counts neither in training nor in evaluation.
    Label ids that are no class always raise: more often the class list is wrong.

    Args:
        pairs: the files.
        spec: says which label ids are valid and how they map to train ids.
        skip_unreadable: leave out what cannot be read instead of stopping.

    Raises:
        ValueError: naming up to ten files, if a header is wrong and they are not
            skipped, or if nothing is left.
    """

    def __init__(
        self, pairs: Sequence[Pair], spec: DatasetSpec, skip_unreadable: bool = False
    ):
        self._spec = spec
        self._table = spec.label_table()
        self._skip = skip_unreadable
        self._named: set[str] = set()
        problems = {pair: _header_problem(pair) for pair in pairs}
        bad = [problem for problem in problems.values() if problem]
        if bad and not skip_unreadable:
            raise ValueError(_listing(bad))
        for problem in bad:
            logging.warning("Left out: %s", problem)
        self._pairs = [pair for pair, problem in problems.items() if not problem]
        if not self._pairs:
            raise ValueError(f"none of {len(pairs)} images is readable")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        pair = self._pairs[index]
        try:
            image, ids = read_image(pair.image), _read_ids(pair.label)
        except ValueError as error:
            if not self._skip:
                raise ValueError(f"{error}; {_SKIP}") from error
            if pair.id not in self._named:
                self._named.add(pair.id)
                logging.warning("Left out: %s", error)
            with Image.open(pair.image) as file:
                width, height = file.size
            image = np.zeros((height, width, 3), np.uint8)
            ids = np.full((height, width), self._spec.ignore_label, np.uint8)
        label = self._train_ids(ids, pair.label)
        return {"image": image, "label": label, "id": pair.id}

    def _train_ids(self, ids: np.ndarray, path: Path) -> np.ndarray:
        label = self._table[ids]
        if (label < 0).any():
            wrong = np.unique(ids[label < 0]).tolist()
            raise ValueError(
                f"{path}: label ids {wrong} are not among the "
                f"{self._spec.num_classes} classes of {self._spec.name} and not "
                f"{self._spec.ignore_label} (ignored)"
            )
        return label.astype(np.uint8)


def _read_ids(path: Path) -> np.ndarray:
    return _decode(path, lambda file: np.asarray(file).astype(np.uint8))


def read_image(path: Path, upright: bool = False) -> np.ndarray:
    """Reads an image as (h, w, 3) uint8 RGB.

    Args:
        path: a file that Pillow reads; grey and transparent ones become RGB.
        upright: turn the image as its EXIF orientation says, as viewers do.

    Raises:
        ValueError: naming the file, if it is not an image, is truncated, or holds more
            than 8 bits a channel.
    """

    def convert(file: Image.Image) -> np.ndarray:
        if file.mode[0] in "IF":
            raise ValueError(f"mode {file.mode} has more than 8 bits a channel")
        turned = ImageOps.exif_transpose(file) if upright else file
        return np.asarray(turned.convert("RGB"))

    return _decode(path, convert)


def _decode(path: Path, convert) -> np.ndarray:
    try:
        with Image.open(path) as file:
            return convert(file)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def _header_problem(pair: Pair) -> str | None:
    sizes = []
    for path in (pair.image, pair.label):
        if not path.exists():
            return f"{path}: missing (its pair is {pair.image.name}, {pair.label.name})"
        try:
            with Image.open(path) as file:
                sizes.append(file.size)
                if path == pair.label and file.mode not in ("P", "L", "1"):
                    return (
                        f"{path}: a label is a grey or palette image of class ids, "
                        f"this one has mode {file.mode}"
                    )
        except _UNREADABLE as error:
            return f"{path}: not an image ({error})"
    if sizes[0] != sizes[1]:
        return "{}: image is {}x{}, its label {}x{}".format(
            pair.image, *sizes[0], *sizes[1]
        )
    return None


def _listing(problems: list[str]) -> str:
    more = f"\n… and {len(problems) - 10} more" if len(problems) > 10 else ""
    return (
        f"{len(problems)} unreadable:\n" + "\n".join(problems[:10]) + f"{more}\n{_SKIP}"
    )


def voc_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs of the VOC layout: `VOCdevkit`, or `VOCdevkit/VOC2012` itself.

    Args:
        root: the folder that holds `JPEGImages`, `SegmentationClass`, `ImageSets`.
        split: a list in `ImageSets/Segmentation`, such as `train` or `val`. Labels of
            a list that ends in `aug` (VOC + SBD) are in `SegmentationClassAug`.
    """
    labels = "SegmentationClassAug" if split.endswith("aug") else "SegmentationClass"
    root = _existing(root / "VOC2012" if (root / "VOC2012").is_dir() else root)
    return [
        Pair(
            name,
            root / "JPEGImages" / f"{name}.jpg",
            root / labels / f"{name}.png",
        )
        for name in _listed(root / "ImageSets" / "Segmentation", split)
    ]


def camvid_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs of the public CamVid layout: `train/ trainannot/ … train.txt …`.

    Args:
        root: the folder that holds them.
        split: `train`, `val` or `test`.
    """
    root = _existing(root)
    images = {path.stem: path for path in _images(root / split)}
    return [
        Pair(
            name,
            images.get(name, root / split / f"{name}.png"),
            root / f"{split}annot" / f"{name}.png",
        )
        for name in _listed(root, split)
    ]


def folder_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs of plain folders: `images/SPLIT/*` and `labels/SPLIT/*.png`, by file name.

    Args:
        root: the folder that holds `images`, `labels` and `classes.txt`.
        split: the name of the sub-folder, such as `train` or `val`.
    """
    images = _images(_existing(root) / "images" / split)
    return [
        Pair(path.stem, path, root / "labels" / split / f"{path.stem}.png")
        for path in images
    ]


def folder_spec(root: Path, mean: tuple[float, float, float]) -> DatasetSpec:
    """The `DatasetSpec` of plain folders: class names are the lines of `classes.txt`.

    Raises:
        ValueError: if the file is missing or empty, names a class twice, or names more
            classes than there are ids beside the ignored 255.
    """
    path = _existing(root) / "classes.txt"
    names = tuple(_lines(path))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: names {', '.join(twice)} more than once")
    if len(names) > 255:
        raise ValueError(f"{path}: {len(names)} classes are more than 255")
    return DatasetSpec(root.resolve().name, names, colour_map(len(names)), mean)


def list_images(path: Path) -> Iterator[Path]:
    """The image files of a folder in order of name, or the file itself.

    Raises:
        ValueError: if the path is missing or a folder without images.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return iter([path] if path.is_file() else _images(path))


def _images(folder: Path) -> list[Path]:
    paths = sorted(
        p for p in _existing(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES
    )
    if not paths:
        raise ValueError(
            f"{folder}: holds no images (suffixes: {' '.join(IMAGE_SUFFIXES)})"
        )
    return paths


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give it with --data_dir")
    return folder


def _listed(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        have = sorted(p.stem for p in _existing(folder).glob("*.txt"))
        raise ValueError(f"{path}: no such list of images; there are {have}")
    return _lines(path)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path}: is empty")
    return lines
