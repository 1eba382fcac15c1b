"""Data sets as users have them on disk, made of arrays."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(pixels, suffix="png") -> bytes:
    """An image file: RGB of (h, w, 3), grey of (h, w)."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(
        file, {"jpg": "jpeg"}.get(suffix, suffix)
    )
    return file.getvalue()


def photo(seed, height=6, width=8) -> np.ndarray:
    """(h, w, 3) pixels, others for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ids(seed, classes, height=6, width=8) -> np.ndarray:
    """(h, w) ids drawn from `classes`."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.asarray(classes, np.uint8), (height, width))


def unpacked(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(archive: Path, files: Mapping[str, bytes]) -> Path:
    """The files in an archive, with entries for folders as publishers have them."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for folder in sorted({str(Path(name).parent) for name in files} - {"."}):
            file.mkdir(folder)
        for name, content in files.items():
            file.writestr(name, content)
    return archive


def tarred(archive: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """The files in a tar; `mode` is that of `tarfile.open`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def by_id(samples: Iterable[dict]) -> dict[str, dict]:
    """Samples by their ids, which are all different."""
    found = {sample["id"]: sample for sample in samples}
    assert len(found) == len(samples)
    return found
