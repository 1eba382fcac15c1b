"""Photographs on disk → label maps on disk; an interrupted job resumes.

The input is an image, a folder, a pattern, a list of paths, or standard input.
"""

import errno
import functools
import glob
import os
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from dilax.data import DatasetSpec
from dilax.data.folder import literal_parts
from dilax.data.lists import read_lines
from dilax.data.pairing import IMAGE_SUFFIXES
from dilax.inference.photos import (
    MAX_PIXELS,
    PNG_END,
    any_size,
    count_pixels,
    legend,
    overlay_bands,
    palette_image,
    read_photo,
    save_bands,
    save_image,
)
from dilax.inference.predictor import Predictor
from dilax.inference.workers import Memory, Outcome, Task, run_tasks
from dilax.runtime.processes import is_writer, own_share

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class Photo(NamedTuple):
    """An image to predict.

    Attributes:
        name: relative path that names its outputs.
        file: its path, or the content of standard input.
    """

    name: Path
    file: Path | bytes

    def __str__(self) -> str:
        return str(self.name if isinstance(self.file, bytes) else self.file)


def is_video(source: str | Path) -> bool:
    """Whether the source has the suffix of a video.

    Example:
        >>> is_video("film.mp4"), is_video("photos")
        (True, False)
    """
    return Path(source).suffix.lower() in VIDEO_SUFFIXES


def find_photos(source: str | Path, output: Path) -> list[Photo]:
    """Return the images of a source, ordered by name.

    Args:
        source: an image; a folder with its subfolders (links to folders are not
            followed); a pattern such as `photos/**/*.jpg`; a `.txt` file with one path
            per line, relative to it; or `-` for one image on standard input. Files and
            folders whose names begin with a dot are skipped.
        output: a folder that is not searched, unless it is the source itself.

    Raises:
        ValueError: if the source is missing or contains no images.
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
    pattern = literal_parts(str(path), Path())
    found = sorted(map(Path, glob.iglob(pattern, recursive=True)))
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
    def is_image(path: Path) -> bool:
        return path.suffix.lower() in IMAGE_SUFFIXES

    images = [path for path in files if is_image(path)]
    if not images:
        suffixes = " ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{source}: contains no images (suffixes: {suffixes})")
    if others := [p for p in files if not is_image(p) and p.is_file()]:
        kinds = ", ".join(sorted({p.suffix or "no suffix" for p in others}))
        logging.warning(
            "%s: %d files are not images, such as %s (kinds: %s)",
            source,
            len(others),
            others[0],
            kinds,
        )
    return images


def _from_common_folder(paths: list[Path]) -> list[Photo]:
    """Return photos, named relative to the folder that all have in common."""
    places = [Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([place.parent for place in places])
    return [Photo(q.relative_to(common), p) for p, q in zip(paths, places, strict=True)]


# What can be written for an image, and the suffix that its file has after the stem.
OUTPUTS = {
    "labels": ".png",
    "overlay": "_overlay.png",
    "colour": "_colour.png",
    "probabilities": "_probabilities.npz",
}
OPACITY = {"overlay": 0.6, "colour": 1.0}  # of the classes' colours over the image
_LONGEST_NAME = 255  # bytes, on common file systems
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"


class Job(NamedTuple):
    """A photograph and the files to write for it."""

    photo: Photo
    files: dict[str, Path]


def predict_photos(
    predictor: Predictor,
    source: str | Path,
    output: Path,
    *,
    outputs: Sequence[str] = ("labels", "overlay"),
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Outcome:
    """Predict images into files with their names, in the same subfolders.

    Several processes share the images.

    Args:
        predictor: network, parameters, data set.
        source: see `find_photos`.
        output: folder to write to; it is created.
        outputs: some of `"labels"` (palette PNG of class ids), `"overlay"`, `"colour"`,
            and `"probabilities"` (`.npz`, (h, w, k) float32). Pictures in class colours
            are accompanied by a `legend.png`.
        overwrite: also predict images whose files are already complete.
        max_pixels: larger images are not read, but reported.

    Raises:
        ValueError: if the source is missing or contains no images, if they would be
            overwritten, or if there is no such output.
        OSError: naming the file or folder, if it cannot be written; files that were
            written before stay.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from dilax.data import DATASETS
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, init_params
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4),)))
        >>> predictor = Predictor(model, init_params(model, seed=0), DATASETS["voc"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (9, 7)).save(f"{folder}/cat.jpg")
        ...     outcome = predict_photos(predictor, folder, Path(folder, "labels"))
        ...     sorted(path.name for path in Path(folder, "labels").iterdir())
        ['cat.png', 'cat_overlay.png', 'legend.png']
    """
    check_outputs(outputs, list(OUTPUTS))
    jobs = own_share(plan_jobs(find_photos(source, output), output, outputs))
    check_writable(output)
    missing = [j for j in jobs if overwrite or not all(map(is_whole, j.files.values()))]
    skipped, spec, memory = len(jobs) - len(missing), predictor.spec, Memory()

    def tasks() -> Iterator[Task]:
        for photo, files in missing:
            pixels = 0
            try:
                for file in files.values():
                    if len(os.fsencode(file.name)) > _LONGEST_NAME:
                        raise ValueError(
                            f"{photo}: its name is too long for {file.name}"
                        )
                pixels = count_pixels(photo.file, str(photo), max_pixels)
                memory.enter(pixels)
                image = read_photo(photo.file, str(photo), len(spec.mean))
            except ValueError as error:
                yield Task(error, pixels)
                continue
            write = functools.partial(save_pictures, image, files, spec)
            yield Task(image, pixels, write, files.get("probabilities"))

    with any_size(), progress(len(jobs), skipped) as bar:
        outcome = run_tasks(predictor, tasks(), memory, bar)
    files = {_key(f) for job in jobs for f in (*job.files.values(), job.photo.file)}
    write_legend(spec, output, outputs, files)
    return outcome._replace(skipped=skipped)


def write_legend(
    spec: DatasetSpec, output: Path, outputs: Sequence[str], files: Collection[str] = ()
) -> None:
    """Write `legend.png` (or `legend_of_classes.png`) beside pictures in class colours.

    Args:
        spec: classes and palette.
        output: the folder.
        outputs: kinds of files that were written for each image.
        files: lower-case paths that are already in use.
    """
    if is_writer() and OPACITY.keys() & set(outputs):
        path = output / "legend.png"
        if _key(path) in files:
            path = output / "legend_of_classes.png"
        save_image(legend(spec), path)


def save_pictures(
    image: np.ndarray, files: dict[str, Path], spec: DatasetSpec, labels: np.ndarray
) -> None:
    """Write those outputs that are pictures."""
    if "labels" in files:
        save_image(palette_image(labels, spec), files["labels"])
    for output in files.keys() & OPACITY.keys():
        bands = overlay_bands(image, labels, spec, OPACITY[output])
        save_bands(bands, labels.shape, files[output])


def progress(total: int | None, done: int = 0, unit: str = "image") -> tqdm:
    """Return a progress bar over images with the time left; `total` may be unknown."""
    return tqdm(
        desc="predict",
        total=total,
        initial=done,
        unit=unit,
        bar_format=_BAR if total else None,
    )


def check_outputs(outputs: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse unknown outputs.

    Raises:
        ValueError: naming them, with what is allowed.
    """
    wrong = [name for name in outputs if name not in allowed]
    if wrong or not outputs:
        raise ValueError(
            f"outputs={','.join(outputs)!r}: must be some of {', '.join(allowed)}"
        )


def check_writable(folder: Path) -> None:
    """Create the folder, and a temporary file in it as a test.

    Raises:
        OSError: naming the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        raise OSError(error.errno or errno.EIO, reason, str(folder)) from error


def is_whole(path: Path) -> bool:
    """Whether a file exists and ends like a complete one of its kind."""
    if not os.path.isfile(path):  # false for names that are too long
        return False
    if path.suffix == ".npz":
        return zipfile.is_zipfile(path)
    if path.suffix == ".png":
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(PNG_END)))
            return file.read() == PNG_END
    return path.stat().st_size > 0


def plan_jobs(photos: list[Photo], output: Path, outputs: Sequence[str]) -> list[Job]:
    """Return the files to write for each photograph.

    They have the images' stems, or the whole file names if stems would make one file
    overwrite another. Case is ignored, as on some file systems.

    Raises:
        ValueError: if they would overwrite the images.
    """
    images = {_key(p.file) for p in photos if isinstance(p.file, Path)}
    for names in ([p.name.stem for p in photos], [p.name.name for p in photos]):
        places = [
            output / photo.name.parent / name
            for photo, name in zip(photos, names, strict=True)
        ]
        # All possible outputs: names do not depend on which are chosen.
        files = {_key(f) for p in places for f in named(p, tuple(OUTPUTS)).values()}
        if len(files) == len(OUTPUTS) * len(photos) and not files & images:
            every = (named(place, outputs) for place in places)
            return list(map(Job, photos, every))
    raise ValueError(f"{output}: contains the images, which would be overwritten")


def named(place: Path, outputs: Sequence[str]) -> dict[str, Path]:
    """Return the file of each output, named after `place`.

    Example:
        >>> str(named(Path("out/cat"), ("overlay",))["overlay"])
        'out/cat_overlay.png'
    """
    return {o: place.with_name(place.name + OUTPUTS[o]) for o in outputs}


def _key(path: Path | bytes) -> str:
    return "" if isinstance(path, bytes) else str(path.resolve()).casefold()
