"""Prepared data sets: made once by the builders, read at random without TensorFlow."""

import contextlib
import fcntl
import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from dilax.datasets.builder import SegmentationBuilder, decoded
from dilax.datasets.spec import DatasetSpec

NAMES = ("voc", "coco", "camvid", "kitti", "cityscapes")
_REMEDY = "python -m dilax.datasets prepare {name} --from PATH"


def builder_class(name: str) -> type[SegmentationBuilder]:
    """The tfds builder of a data set.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r}: is no data set to prepare; there are {NAMES}")
    module = importlib.import_module(f"dilax.datasets.{name}")
    return getattr(module, name.capitalize())


def default_data_dir() -> Path:
    """Where prepared data sets lie unless a flag says otherwise: as tfds has it."""
    home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(home).expanduser()


def prepared_dir(name: str, variant: str, data_dir: Path) -> Path:
    """The folder of a prepared data set, whether it is there or not.

    Args:
        name: one of `NAMES`.
        variant: one of its variants; "" is the first.
        data_dir: the folder of all prepared sets.

    Raises:
        ValueError: if the data set has no such variant.
    """
    builder = builder_class(name)
    variants = [config.name for config in builder.BUILDER_CONFIGS]
    if variant and variant not in variants:
        raise ValueError(f"variant {variant!r}: {name} has {', '.join(variants)}")
    chosen = variant or variants[0]
    return data_dir / builder.name / chosen / str(builder.VERSION)


class PreparedSplit(Sequence):
    """A source of `{image, label, id}`; see `open_prepared`."""

    def __init__(self, records: Any, spec: DatasetSpec):
        self._records, self._table = records, spec.label_table()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        record = self._records[range(len(self))[index]]
        name = record["id"].decode()
        image = np.asarray(decoded(record["image"], name).convert("RGB"))
        ids = np.asarray(decoded(record["label"], name))
        return {"image": image, "label": self._table[ids].astype(np.uint8), "id": name}


def open_prepared(
    name: str, spec: DatasetSpec, data_dir: str, split: str, variant: str = ""
) -> PreparedSplit:
    """Opens a split of a prepared data set.

    Args:
        name: one of `NAMES`.
        spec: its facts: how ids on disk map to train ids.
        data_dir: the folder of all prepared sets; "" is `default_data_dir()`.
        split: name of the split.
        variant: one of the data set's variants; "" is the first.

    Raises:
        ValueError: if the set is not prepared there, or has no such split.
    """
    home = Path(data_dir).expanduser() if data_dir else default_data_dir()
    folder = prepared_dir(name, variant, home)
    if not folder.is_dir():
        raise ValueError(
            f"--data_dir={home}: {spec.name} is not prepared there ({folder} is "
            f"missing); {_REMEDY.format(name=name)} --data_dir={home} does it once"
        )
    try:
        builder = tfds.builder_from_directory(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: is not a prepared data set ({error})") from error
    if split not in builder.info.splits:
        have = ", ".join(builder.info.splits)
        raise ValueError(f"{folder}: has no split {split!r}; there are {have}")
    raw = tfds.decode.SkipDecoding()
    records = builder.as_data_source(split, decoders={"image": raw, "label": raw})
    return PreparedSplit(records, spec)


def prepare(
    name: str,
    source: Path,
    data_dir: Path,
    *,
    variant: str = "",
    partial: bool = False,
    verify: bool = True,
    overwrite: bool = False,
) -> Path:
    """Prepares a data set once; nothing half-prepared stays behind a failure.

    Args:
        name: one of `NAMES`.
        source: a folder with archives or unpacked files, or an archive.
        data_dir: the folder of all prepared sets.
        variant: one of the data set's variants; "" is the first.
        partial: prepare what is there even if images or labels are missing.
        verify: compare archives with their published checksums.
        overwrite: prepare again what is prepared.

    Returns:
        The folder of the prepared set.

    Raises:
        ValueError: naming the files, if the source is not whole or not this data set,
            or if another process is preparing it.
        OSError: if the disk is full or cannot be written.
    """
    folder = prepared_dir(name, variant, data_dir)
    with _alone(folder):
        for leftover in folder.parent.glob("incomplete.*"):
            logging.warning(
                "Removed what an interrupted preparation left: %s", leftover
            )
            shutil.rmtree(leftover)
        if folder.exists() and not overwrite:
            return folder
        builder = builder_class(name)(
            data_dir=str(data_dir),
            config=folder.parent.name,
            file_format="array_record",
        )
        builder.source, builder.partial, builder.verify = source, partial, verify
        builder.scratch = folder.parent / "incomplete.scratch"
        builder.scratch.mkdir()
        try:
            _prepare(builder, overwrite)
        finally:
            shutil.rmtree(builder.scratch, ignore_errors=True)
    return folder


def _prepare(builder: SegmentationBuilder, overwrite: bool) -> None:
    modes = tfds.GenerateMode
    mode = modes.REUSE_CACHE_IF_EXISTS if overwrite else modes.REUSE_DATASET_IF_EXISTS
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):
        builder.download_and_prepare(
            download_dir=str(builder.scratch),
            download_config=tfds.download.DownloadConfig(download_mode=mode),
            file_format="array_record",
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a prepared set while it is made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{folder}: another process is preparing it; wait until it is done"
            ) from error
        yield
