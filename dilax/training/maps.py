"""The front end's maps of every image, computed once and stored (paper §5).

A context stage trains on these instead of running the front end in each step.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import serialization

from dilax.inference import Predictor
from dilax.input import in_order, resize, scaled_size
from dilax.training.metrics import progress


class StoredMaps(Sequence):
    """A source of `{"image": maps (hc, wc, k) float32, "label", "id"}` from files.

    Args:
        folder: where `store_maps` put them.
        count: how many there are.
    """

    def __init__(self, folder: Path, count: int):
        self._folder, self._count = folder, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        path = _file(self._folder, range(self._count)[index])
        arrays = serialization.msgpack_restore(path.read_bytes())
        return {"image": arrays["maps"], "label": arrays["label"], "id": str(index)}


def store_maps(
    predictor: Predictor, source: Sequence[dict], folder: Path, title: str
) -> StoredMaps:
    """Computes and stores the maps that are not there yet; an interrupted job goes on.

    Labels are stored beside them, at the resolution of the network's input.

    Args:
        predictor: with the front end's parameters.
        source: `{image, label}` samples.
        folder: where to store one file an image.
        title: of the progress bar.

    Returns:
        The source of stored maps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(len(source)) if not _file(folder, i).exists()]
    done = len(source) - len(missing)
    with progress(title, len(source), done, "image") as bar:
        chunks = in_order(_Chosen(source, missing), predictor.batch_size)
        indices = iter(missing)
        for samples in chunks:
            maps = predictor.maps([s["image"] for s in samples])
            for sample, cells in zip(samples, maps, strict=True):
                size = scaled_size(sample["label"].shape, predictor.spec.scale)
                label = resize(sample["label"], size)
                _write(_file(folder, next(indices)), maps=cells, label=label)
                bar.update()
    return StoredMaps(folder, len(source))


class _Chosen(Sequence):
    def __init__(self, source: Sequence[dict], indices: list[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        return self._source[self._indices[index]]


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.msgpack"


def _write(path: Path, maps: np.ndarray, label: np.ndarray) -> None:
    # Not NumPy's format: it parses its header as Python, and Python 3.11 fails at
    # random when several threads parse.
    content = serialization.msgpack_serialize({"maps": maps, "label": label})
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
