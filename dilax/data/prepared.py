"""Prepared data sets: made once by the builders, read at random without TensorFlow."""

import contextlib
import errno
import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from dilax.data.builders.builder import SegmentationBuilder, decoded
from dilax.data.builders.download import download
from dilax.data.spec import DatasetSpec
from dilax.runtime.files import alone

NAMES = ("voc", "coco", "camvid", "kitti", "cityscapes")
_REMEDY = "dilax data prepare {name} --from PATH"
_AGAIN = "prepare it again, with --overwrite"
_STAGING, _REPLACED = "incomplete.staging", "incomplete.replaced"


def builder_class(name: str) -> type[SegmentationBuilder]:
    """The tfds builder of a data set.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r}: is no data set to prepare; there are {NAMES}")
    module = importlib.import_module(f"dilax.data.builders.{name}")
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
    return data_dir.expanduser() / builder.name / chosen / str(builder.VERSION)


class PreparedSplit(Sequence):
    """A source of `{image, label, id}`; see `open_prepared`. Threads may share it."""

    def __init__(self, records: Any, spec: DatasetSpec, where: str):
        self._records, self._spec, self._where = records, spec, where

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict:  # type: ignore[override]
        record = self._record(range(len(self))[index])
        name = record["id"].decode()
        where = f"{self._where}: {name}"
        image = np.asarray(decoded(record["image"], where).convert("RGB"))
        ids = np.asarray(decoded(record["label"], where))
        return {"image": image, "label": self._trained(ids, where), "id": name}

    def _record(self, index: int) -> dict:
        try:
            record = self._records[index]
            if record["id"] is None:
                raise ValueError("it is empty")
        except Exception as error:  # array_record's and protobuf's have no common base
            raise ValueError(
                f"{self._where}: record {index} cannot be read ({error}); {_AGAIN}"
            ) from error
        return record

    def _trained(self, ids: np.ndarray, where: str) -> np.ndarray:
        labels = self._spec.label_table()[ids]
        if (labels < 0).any():
            wrong = np.unique(ids[labels < 0]).tolist()
            raise ValueError(
                f"{where}: label ids {wrong} are none of the "
                f"{self._spec.num_classes} classes of {self._spec.name}"
            )
        return labels.astype(np.uint8)


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
        ValueError: if the set is not prepared there, is damaged, or has no such split.
    """
    home = Path(data_dir).expanduser() if data_dir else default_data_dir()
    folder = prepared_dir(name, variant, home)
    if not folder.is_dir():
        raise ValueError(
            f"--data_dir={home}: {spec.name} is not prepared there ({folder} is "
            f"missing); {_REMEDY.format(name=name)} --data_dir={home} does it once"
        )
    builder = _builder_at(folder)
    if split not in builder.info.splits:
        have = ", ".join(builder.info.splits)
        raise ValueError(f"{folder}: has no split {split!r}; there are {have}")
    raw = tfds.decode.SkipDecoding()
    try:
        records = builder.as_data_source(split, decoders={"image": raw, "label": raw})
    except Exception as error:
        raise ValueError(f"{folder}: is damaged ({error}); {_AGAIN}") from error
    return PreparedSplit(records, spec, f"{folder}, {split}")


def _builder_at(folder: Path) -> tfds.core.DatasetBuilder:
    """The set in a folder, whoever made it."""
    try:
        builder = tfds.builder_from_directory(folder)
        builder.info.metadata.get("partial")  # tfds reads it only when asked
        return builder
    except Exception as error:  # files of any content raise errors of any kind
        raise ValueError(
            f"{folder}: is not a prepared data set ({error}); {_AGAIN}"
        ) from error


def prepare(
    name: str,
    source: Path | None,
    data_dir: Path,
    *,
    variant: str = "",
    partial: bool = False,
    verify: bool = True,
    overwrite: bool = False,
) -> Path:
    """Prepares a data set once; nothing half-prepared stays behind a failure.

    Published splits of which the source has nothing are left out; warnings say which.

    Args:
        name: one of `NAMES`.
        source: a folder with archives or unpacked files, or an archive; None downloads
            what can be had without an account into `data_dir`/downloads/`name`, and
            takes what else lies there.
        data_dir: the folder of all prepared sets.
        variant: one of the data set's variants; "" is the first.
        partial: prepare what is there even if images or labels are missing.
        verify: compare archives with their published checksums.
        overwrite: prepare again what is prepared; it stays until the new set is whole.

    Returns:
        The folder of the prepared set.

    Raises:
        ValueError: naming the files, if the source is not whole or not this data set;
            if nothing of it can be downloaded, if another process is preparing it, or
            if what is prepared is damaged, or a part where the whole is wanted.
        OSError: if the disk is full or cannot be written, or a download fails.
    """
    folder = prepared_dir(name, variant, data_dir)
    with _alone(folder):
        _tidy(folder)
        if overwrite or not folder.exists():
            staging = folder.parent / _STAGING
            try:
                builder = _staged(name, folder.parent.name, staging)
                builder.partial, builder.verify = partial, verify
                builder.source = source or _downloaded(
                    builder, data_dir.expanduser() / "downloads" / name
                )
                with _full_disk_told(folder):
                    _generate(builder)
                _move(Path(builder.data_dir), folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        elif _builder_at(folder).info.metadata.get("partial") and not partial:
            raise ValueError(
                f"{folder}: is prepared, but only in part; --partial takes it as it is,"
                " --overwrite prepares it again"
            )
        for line in _absent(name, folder):
            logging.warning("not prepared: %s", line)
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a prepared set while it is made."""
    refusal = f"{folder}: another process is preparing it; wait until it is done"
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(folder.parent / ".lock", refusal))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{folder.parent}: cannot be written ({error.strerror}); "
                "give another --data_dir",
            ) from error
        yield


def _tidy(folder: Path) -> None:
    """Ends what was interrupted."""
    replaced = folder.parent / _REPLACED
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for leftover in folder.parent.glob("incomplete.*"):
        logging.warning("Removed what an interrupted preparation left: %s", leftover)
        shutil.rmtree(leftover)


def _staged(name: str, variant: str, staging: Path) -> SegmentationBuilder:
    """A builder into a folder of its own, where tfds finds and leaves nothing else."""
    builder = builder_class(name)(
        data_dir=str(staging), config=variant, file_format="array_record"
    )
    builder.scratch = staging / "scratch"
    builder.scratch.mkdir(parents=True)
    return builder


def _downloaded(builder: SegmentationBuilder, folder: Path) -> Path:
    """The folder with all archives that can be downloaded, or that lie there."""
    archives = builder.archives()
    there = [archive for archive in archives if (folder / archive.name).exists()]
    if not there and not any(archive.url for archive in archives):
        raise ValueError(
            f"{builder.SPEC.name}: cannot be downloaded without an account. "
            f"{builder.HOW}"
        )
    for archive in archives:
        if archive.url:
            unknown = archive._replace(size=0, digest="")
            download(archive if builder.verify else unknown, folder)
        elif archive not in there:
            logging.warning("%s cannot be downloaded: %s", archive.name, archive.holds)
    return folder


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"{folder}: the disk is full ({error.strerror}); "
            "free some space, or give another --data_dir",
        ) from error


def _generate(builder: SegmentationBuilder) -> None:
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):
        builder.download_and_prepare(
            download_dir=str(builder.scratch), file_format="array_record"
        )


def _move(made: Path, folder: Path) -> None:
    replaced = folder.parent / _REPLACED
    if folder.exists():
        folder.rename(replaced)
    made.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _absent(name: str, folder: Path) -> list[str]:
    """The published splits that a prepared set has not."""
    variant, data_dir = folder.parent.name, folder.parents[2]
    return builder_class(name)(data_dir=str(data_dir), config=variant).absent()
