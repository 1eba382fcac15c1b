"""Which mask belongs to which image, by the names of files and folders."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from dilax.datasets.files import IMAGE_SUFFIXES, Pair
from dilax.datasets.naming import Words, core_of, one_form, split_of, words_of

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
