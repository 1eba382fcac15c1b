"""The front end's maps of every image, computed once and stored (paper §5).

A context stage trains on these instead of running the front end in each step.
"""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import serialization

from dilax.datasets import Chosen
from dilax.datasets.writing import whole_or_not_at_all
from dilax.inference import Predictor
from dilax.input import in_order, resize, scaled_size
from dilax.ops.hosts import own_share, wait_for_all
from dilax.training.metrics import progress

_PROBED = 32


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
    predictor: Predictor,
    source: Sequence[dict],
    folder: Path,
    title: str,
    surroundings: bool = False,
) -> StoredMaps:
    """Computes and stores the maps that are not there yet; an interrupted job goes on.

    Labels are stored beside them, at the resolution of the network's input.

    Args:
        predictor: with the front end's parameters.
        source: `{image, label}` samples.
        folder: where to store one file an image.
        title: of the progress bar.
        surroundings: store the maps of whole tiles, beyond the image where it is
            smaller, as the joint network sees them.

    Returns:
        The source of stored maps.

    Raises:
        OSError: if the disk has no room for them, before anything is computed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(len(source)) if not _file(folder, i).exists()]
    if missing:
        _check_space(predictor, source, missing, folder, surroundings)
    wait_for_all(f"looked for maps in {folder}")
    done = len(source) - len(missing)
    missing = own_share(missing)  # several processes share what is to do
    with progress(title, done + len(missing), done, "image") as bar:
        chunks = in_order(Chosen(source, missing), predictor.batch_size)
        indices = iter(missing)
        for samples in chunks:
            maps = predictor.maps([s["image"] for s in samples], surroundings)
            for sample, cells in zip(samples, maps, strict=True):
                size = scaled_size(sample["label"].shape, predictor.spec.scale)
                label = resize(sample["label"], size)
                _write(_file(folder, next(indices)), maps=cells, label=label)
                bar.update()
    wait_for_all(f"maps in {folder}")
    return StoredMaps(folder, len(source))


def _check_space(
    predictor: Predictor,
    source: Sequence[dict],
    missing: list[int],
    folder: Path,
    surroundings: bool,
) -> None:
    """Estimates the maps' size from some of the images."""
    some = missing[:: max(1, len(missing) // _PROBED)][:_PROBED]
    sizes = []
    for i in some:
        shape = source[i]["image"].shape
        rows, columns = predictor.map_size(shape, surroundings)
        height, width = scaled_size(shape, predictor.spec.scale)
        cell = 4 * predictor.spec.num_classes * predictor.model.front_end.duc**2
        sizes.append(rows * columns * cell + height * width)
    need, free = sum(sizes) / len(sizes) * len(missing), shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"the maps of {len(missing)} images take about {need / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free",
            str(folder),
        )


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.msgpack"


def _write(path: Path, maps: np.ndarray, label: np.ndarray) -> None:
    # Not NumPy's format: it parses its header as Python, and Python 3.11 fails at
    # random when several threads parse.
    content = serialization.msgpack_serialize({"maps": maps, "label": label})
    with whole_or_not_at_all(path, durable=True) as partial:
        partial.write_bytes(content)
