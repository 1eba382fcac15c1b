"""What is to be predicted: an image, a folder, a pattern, a list, standard input."""

import glob
import os
import sys
from pathlib import Path
from typing import NamedTuple

from dilax.datasets.files import IMAGE_SUFFIXES, read_lines

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class Photo(NamedTuple):
    """An image to predict.

    Attributes:
        name: relative path that names its outputs.
        file: its path, or what standard input held.
    """

    name: Path
    file: Path | bytes

    def __str__(self) -> str:
        return str(self.name if isinstance(self.file, bytes) else self.file)


def is_video(source: str | Path) -> bool:
    """Whether the source is named as videos are.

    Example:
        >>> is_video("film.mp4"), is_video("photos")
        (True, False)
    """
    return Path(source).suffix.lower() in VIDEO_SUFFIXES


def find_photos(source: str | Path, output: Path) -> list[Photo]:
    """The images that a source names, in order of name.

    Args:
        source: an image; a folder, with its sub-folders (links to folders are not
            followed); a pattern such as
            `photos/**/*.jpg`; a `.txt` file of paths, a line each, relative to it; or
            `-` for the bytes of one image on standard input. Files and folders whose
            names begin with a dot are left out.
        output: a folder in which nothing is looked for, unless it is the source itself.

    Raises:
        ValueError: if the source is missing or holds no images.
    """
    path = Path(source).expanduser()
    if str(source) == "-":
        return [Photo(Path("stdin"), sys.stdin.buffer.read())]
    if path.is_dir():
        return _in_folder(path, output)
    if path.is_file() and path.suffix.lower() == ".txt":
        lines = [path.parent / Path(line).expanduser() for line in read_lines(path)]
        return _from_common_folder(list(dict.fromkeys(lines)))
    if path.is_file():
        return [Photo(Path(path.name), path)]
    if not glob.has_magic(str(path)):
        raise ValueError(f"{source}: no such file or folder")
    found = sorted(map(Path, glob.iglob(str(path), recursive=True)))
    return _from_common_folder(_images(found, source))


def _in_folder(folder: Path, output: Path) -> list[Photo]:
    apart = output.resolve()
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and (Path(place) / name).resolve() != apart
        ]
        files += [Path(place) / name for name in names if name[0] != "."]
    return [Photo(p.relative_to(folder), p) for p in _images(sorted(files), folder)]


def _images(files: list[Path], source: str | Path) -> list[Path]:
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        suffixes = " ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{source}: holds no images (suffixes: {suffixes})")
    return images


def _from_common_folder(paths: list[Path]) -> list[Photo]:
    """Photos that are named from the folder on that all have in common."""
    places = [Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([place.parent for place in places])
    return [Photo(q.relative_to(common), p) for p, q in zip(paths, places, strict=True)]
