"""Samples: any split of any data set as a sequence that can be read in any order.

A source is a sequence of `{"image": (h, w, c), "label": (h, w) uint8, "id"}`; images
are RGB and uint8 unless the data set says otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from dilax.data.folder import read_folder
from dilax.data.masks import MaskKind, read_mask
from dilax.data.pairing import Pair
from dilax.data.pixels import Header, convertible, read_header, read_pixels
from dilax.data.scenes import Scenes
from dilax.data.spec import DATASETS, DatasetSpec

_SKIP = "repair them, or skip them with --config.data.skip_unreadable=True"
_CLASSES = "add a line to --classes for each missing one; call it void to ignore it"


def open_source(
    dataset: str,
    spec: DatasetSpec,
    data_dir: str,
    split: str,
    *,
    variant: str = "",
    images: str = "",
    labels: str = "",
    seed: int = 0,
    skip_unreadable: bool = False,
) -> Sequence[dict]:
    """Open a split of a data set as a sequence of `{image, label, id}`.

    Args:
        dataset: `"scenes"`, `"folder"` (your own), or a prepared data set.
        spec: of the data set.
        data_dir: the folder of the files, or of all prepared sets.
        split: `"train"`, `"val"`, ….
        variant: of a prepared set; "" is its first.
        images: of a folder; see `read_folder`.
        labels: of a folder; see `read_folder`.
        seed: of the rendered scenes.
        skip_unreadable: of a folder; see `ImageLabelFiles`.

    Returns:
        A random-access source.

    Raises:
        ValueError: if the data set is unknown or missing, or its files are missing,
            empty, or wrong.

    Example:
        >>> from dilax.data import DATASETS
        >>> len(open_source("scenes", DATASETS["scenes"], "", "val"))
        100
    """
    if dataset == "scenes":
        return Scenes(split, seed=seed)
    if dataset == "folder":
        splits = read_folder(data_dir, images, labels).splits
        if split not in splits:
            raise ValueError(f"{data_dir}: has no split {split!r}; it has {[*splits]}")
        return ImageLabelFiles(splits[split], spec, skip_unreadable)
    if dataset not in DATASETS:
        known = ", ".join(["folder", *DATASETS])
        raise ValueError(f"--config.data.dataset={dataset!r}: must be one of {known}")
    # Imported here, because importing tfds takes more than a second.
    from dilax.data.prepared import open_prepared

    return open_prepared(dataset, spec, data_dir, split, variant)


class ImageLabelFiles(Sequence):
    """A source that reads pairs of files, and names the file when one is wrong.

    Headers are checked on creation: both files exist, are images, and agree in size.
    Pixels are read on access. If they cannot be read, an error is raised; with
    `skip_unreadable`, the image is logged once and returned with a label that consists
    of `ignore_label`, so that it affects neither training nor evaluation. Ids and
    colours of no class always raise an error, because usually the list of classes is
    wrong.

    Args:
        pairs: the files.
        spec: what masks contain, and how it maps to train ids.
        skip_unreadable: skip files that cannot be read instead of raising an error.

    Raises:
        ValueError: naming up to ten files, if a header is wrong and they are not
            skipped, or if nothing is left.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from dilax.data.pairing import Pair
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
        self._spec, self._skip = spec, skip_unreadable
        self._logged: set[Pair] = set()
        self._files, problems, _ = check_pairs(
            pairs, skip_unreadable, len(spec.mean), spec.as_stored
        )
        for problem in problems:
            logging.warning("Skipped: %s", problem)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        files, spec = self._files[index], self._spec
        pair, channels = files.pair, len(spec.mean)
        kind: MaskKind = "colours" if spec.colour_masks else "ids"
        kind = "alpha" if spec.alpha_masks else kind
        try:
            image = read_pixels(pair.image, channels, files.upright[0])
            mask = read_mask(pair.label, kind, spec.threshold, files.upright[1])
        except ValueError as error:
            if not self._skip:
                raise ValueError(f"{error}; {_SKIP}") from error
            if pair not in self._logged:
                self._logged.add(pair)
                logging.warning("Skipped: %s", error)
            bits = np.uint16 if files.image.bits == 16 else np.uint8
            image = np.zeros((*files.size, channels), bits)
            label = np.full(files.size, spec.ignore_label, np.uint8)
        else:
            try:
                label = spec.train_ids(mask, str(pair.label))
            except ValueError as error:
                raise ValueError(f"{error}; {_CLASSES}") from error
        return {"image": image, "label": label, "id": pair.id}


class CheckedPair(NamedTuple):
    """An image and a mask whose headers are correct.

    Attributes:
        pair: the files.
        image: header of the image.
        mask: header of the mask.
        upright: whether to turn the image, and whether to turn the mask.
    """

    pair: Pair
    image: Header
    mask: Header
    upright: tuple[bool, bool]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as the image is read."""
        return self.image.shown(self.upright[0])


def check_pairs(
    pairs: Sequence[Pair],
    skip_unreadable: bool = False,
    channels: int | None = None,
    as_stored: bool | None = None,
) -> tuple[list[CheckedPair], list[str], list[str]]:
    """Check the headers of files, and whether images and masks need to be turned.

    Images and masks are read upright, as viewers show them, if their sizes then agree;
    otherwise as stored, if the stored sizes agree.

    Args:
        pairs: the files.
        skip_unreadable: skip wrong files instead of raising an error.
        channels: number of channels of the images, if it is known.
        as_stored: prefer images and masks as stored; None raises an error if some fit
            only as stored and others fit both ways.

    Returns:
        The correct pairs, what is wrong with the others, and notes on the orientation.

    Raises:
        ValueError: naming up to ten files, if a header is wrong and they are not
            skipped, or if nothing is left.
    """
    checked: list[CheckedPair] = []
    problems: list[str] = []
    for pair in pairs:
        try:
            checked.append(_check(pair, channels, bool(as_stored)))
        except ValueError as error:
            problems.append(str(error))
    if not checked or (problems and not skip_unreadable):
        more = f"\n… and {len(problems) - 10} more" if len(problems) > 10 else ""
        first = "\n".join(problems[:10])
        raise ValueError(
            f"{len(problems)} of {len(pairs)} images are unusable:\n"
            f"{first}{more}\n{_SKIP}"
        )
    tagged = [files for files in checked if files.image.orientation > 1]
    turned = [files for files in tagged if files.upright[0]]
    stored = [files for files in tagged if not files.upright[0]]
    masks = sum(files.mask.orientation > 1 and files.upright[1] for files in checked)
    for files in turned if stored and as_stored is None else ():
        height, width = files.image.size
        if files.image.orientation < 5 or height == width:
            raise ValueError(
                f"{files.pair.image}: has an EXIF orientation, and its mask fits it "
                f"both turned upright and as stored; that of {stored[0].pair.image} "
                "fits only as stored. --config.data.orientation=stored reads both as "
                "stored, =upright turns those that fit both ways"
            )
    notes = []
    if turned:
        notes.append(
            f"turned upright by their EXIF orientation: {len(turned)} images, such as "
            f"{turned[0].pair.image}"
        )
    if masks:
        notes.append(f"masks turned by an orientation of their own: {masks}")
    if stored:
        notes.append(
            f"not turned by their EXIF orientation: {len(stored)} images, such as "
            f"{stored[0].pair.image}, because their masks fit the pixels as stored"
        )
    return checked, problems, notes


def _check(pair: Pair, channels: int | None, as_stored: bool) -> CheckedPair:
    """Check one pair.

    Raises:
        ValueError: naming the file, if it is wrong.
    """
    if not pair.image.exists():
        raise ValueError(f"{pair.image}: is missing")
    if not pair.label.exists():
        raise ValueError(
            f"{pair.image}: has no mask; expected one such as {pair.label}"
        )
    image, mask = read_header(pair.image), read_header(pair.label, mask=True)
    if channels and not convertible(image.channels, channels):
        found = f"has {image.channels} channels, not {channels}"
        raise ValueError(f"{pair.image}: {found}")
    ways = [(True, True), (True, False), (False, True), (False, False)]
    for turn in reversed(ways) if as_stored else ways:
        if image.shown(turn[0]) == mask.shown(turn[1]):
            return CheckedPair(pair, image, mask, turn)
    sizes = "is {1}x{0}, its mask {3}x{2}".format(*image.size, *mask.size)
    if image.size == mask.size[::-1]:
        sizes += "; no EXIF orientation tells which is turned"
    raise ValueError(f"{pair.image}: {sizes}")


class Joined(Sequence):
    """The concatenation of two sources.

    Example:
        >>> from dilax.data import Scenes
        >>> len(Joined(Scenes("train", count=3), Scenes("val", count=2)))
        5
    """

    def __init__(self, first: Sequence[dict], second: Sequence[dict]):
        self._parts = first, second

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        index = range(len(self))[index]
        first, second = self._parts
        return first[index] if index < len(first) else second[index - len(first)]


class Chosen(Sequence):
    """Some samples of a source, by index, as a source.

    Example:
        >>> from dilax.data import Scenes
        >>> [s["id"] for s in Chosen(Scenes("val", count=5, size=64), [4, 0])]
        ['val_00004', 'val_00000']
    """

    def __init__(self, source: Sequence[dict], indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        return self._source[self._indices[index]]


def evenly_spread(count: int, n: int) -> list[int]:
    """Return up to n of `count` indices, evenly spread.

    Example:
        >>> evenly_spread(10, 4), evenly_spread(2, 4)
        ([0, 2, 5, 7], [0, 1])
    """
    n = min(n, count)
    return [i * count // n for i in range(n)]
