"""Images and masks on disk as a random-access source.

A source is a sequence of `{"image": (h, w, c), "label": (h, w) uint8, "id"}`; images
are RGB and uint8 unless the data set says otherwise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from dilax.data.pixels import fits, read_header, read_mask, read_mask_size, read_pixels
from dilax.data.spec import RGB, DatasetSpec, ids_of_colours

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"),
    *(".gif", ".webp", ".ppm", ".pgm"),
)
_SKIP = "mend them, or leave them out by --config.data.skip_unreadable=True"


class Pair(NamedTuple):
    """An image file and its mask."""

    id: str
    image: Path
    label: Path


class ImageLabelFiles(Sequence):
    """A source that reads pairs of files, and names the file when one is not right.

    Headers are read at once: that both files exist, are images, and agree in size.
    Pixels are read on access. An image whose pixels turn out to be unreadable raises,
    or, with `skip_unreadable`, is named once in the log and given with a label of
    nothing but `ignore_label`, so that it counts neither in training nor in evaluation.
    Ids and colours that are no class always raise: more often the class list is wrong.

    Args:
        pairs: the files.
        spec: says what masks hold and how it maps to train ids.
        skip_unreadable: leave out what cannot be read instead of stopping.

    Raises:
        ValueError: naming up to ten files, if a header is wrong and they are not
            skipped, or if nothing is left.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from dilax.data.spec import DATASETS
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pair = Pair("a", Path(folder, "a.jpg"), Path(folder, "a.png"))
        ...     Image.new("RGB", (4, 3)).save(pair.image)
        ...     Image.new("L", (4, 3), 7).save(pair.label)
        ...     source = ImageLabelFiles([pair], DATASETS["voc"])
        ...     source[0]["image"].shape, int(source[0]["label"].max())
        ((3, 4, 3), 7)
    """

    def __init__(
        self, pairs: Sequence[Pair], spec: DatasetSpec, skip_unreadable: bool = False
    ):
        self._spec = spec
        own = spec.label_table()
        self._table = np.full(1 << 16, -1, np.int16)
        self._table[: len(own)] = own
        self._colours: dict[RGB, int] = {c: i for i, c in enumerate(spec.palette)}
        self._colours |= dict.fromkeys(spec.void_colours, spec.ignore_label)
        self._skip = skip_unreadable
        self._named: set[str] = set()
        self._pairs, problems = check_pairs(pairs, skip_unreadable, len(spec.mean))
        for problem in problems:
            logging.warning("Left out: %s", problem)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        pair = self._pairs[index]
        try:
            image = read_pixels(pair.image, len(self._spec.mean))
            mask = read_mask(pair.label, self._spec.colour_masks)
        except ValueError as error:
            return self._left_out(pair, error)
        label = self._train_ids(mask, pair.label)
        return {"image": image, "label": label, "id": pair.id}

    def _left_out(self, pair: Pair, error: ValueError) -> dict:
        if not self._skip:
            raise ValueError(f"{error}; {_SKIP}") from error
        if str(pair.image) not in self._named:
            self._named.add(str(pair.image))
            logging.warning("Left out: %s", error)
        header = read_header(pair.image)
        kind = np.uint16 if header.bits == 16 else np.uint8
        image = np.zeros((*header.size, len(self._spec.mean)), kind)
        label = np.full(header.size, self._spec.ignore_label, np.uint8)
        return {"image": image, "label": label, "id": pair.id}

    def _train_ids(self, mask: np.ndarray, path: Path) -> np.ndarray:
        remedy = "give what is missing a line in --classes, called void to ignore it"
        if self._spec.colour_masks:
            try:
                return ids_of_colours(mask, self._colours, str(path))
            except ValueError as error:
                raise ValueError(f"{error}; {remedy}") from error
        label = self._table[mask]
        if (label < 0).any():
            wrong = np.unique(mask[label < 0]).tolist()
            raise ValueError(
                f"{path}: ids {wrong} are none of the {self._spec.num_classes} classes "
                f"of {self._spec.name}; {remedy}"
            )
        return label.astype(np.uint8)


def check_pairs(
    pairs: Sequence[Pair], skip_unreadable: bool = False, channels: int | None = None
) -> tuple[list[Pair], list[str]]:
    """Looks at the headers of files.

    Args:
        pairs: the files.
        skip_unreadable: leave out the wrong ones instead of stopping.
        channels: of the images, if it is known.

    Returns:
        The pairs that are right, and what is wrong with the others.

    Raises:
        ValueError: naming up to ten files, if a header is wrong and they are not
            skipped, or if nothing is left.
    """
    problems = {pair: _header_problem(pair, channels) for pair in pairs}
    bad = [problem for problem in problems.values() if problem]
    if bad and not skip_unreadable:
        raise ValueError(_listing(bad))
    right = [pair for pair, problem in problems.items() if not problem]
    if not right:
        raise ValueError(f"none of {len(pairs)} images can be used; {_listing(bad)}")
    return right, bad


def _header_problem(pair: Pair, channels: int | None) -> str | None:
    if not pair.image.exists():
        return f"{pair.image}: is missing"
    if not pair.label.exists():
        return f"{pair.image}: has no mask, such as {pair.label}"
    try:
        image, size = read_header(pair.image), read_mask_size(pair.label)
    except ValueError as error:
        return str(error)
    if image.size != size:
        turned = "; does its EXIF orientation turn it?" * (image.size == size[::-1])
        return "{}: is {}x{}, its mask {}x{}{}".format(
            pair.image, *image.size[::-1], *size[::-1], turned
        )
    if channels and not fits(image.channels, channels):
        return f"{pair.image}: has {image.channels} channels, not {channels}"
    return None


def _listing(problems: list[str]) -> str:
    more = f"\n… and {len(problems) - 10} more" if len(problems) > 10 else ""
    first = "\n".join(problems[:10])
    return f"{len(problems)} unusable:\n{first}{more}\n{_SKIP}"


def list_images(path: Path) -> Iterator[Path]:
    """The image files of a folder in order of name, or the file itself.

    Raises:
        ValueError: if the path is missing or a folder without images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (4, 3)).save(f"{folder}/b.png")
        ...     Image.new("RGB", (4, 3)).save(f"{folder}/a.jpg")
        ...     [path.name for path in list_images(Path(folder))]
        ['a.jpg', 'b.png']
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return iter([path] if path.is_file() else _images(path))


def _images(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(
            f"{folder}: holds no images (suffixes: {' '.join(IMAGE_SUFFIXES)})"
        )
    return paths


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped.

    Raises:
        ValueError: naming the file, if it cannot be read or has none.
    """
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
