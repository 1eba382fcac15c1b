"""Prepared data sets: written once by the builders, read at random without TensorFlow.

The format is that of tensorflow-datasets, which can read them, too.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from dilax.data.builders.builder import SegmentationBuilder, Variant, decoded
from dilax.data.builders.coco import Coco
from dilax.data.builders.urban import Camvid, Cityscapes, Kitti
from dilax.data.builders.voc import Voc
from dilax.data.pixels import orientation_of, turned
from dilax.data.spec import DatasetSpec
from dilax.runtime.download import WrongFile, download
from dilax.runtime.files import alone

_BUILDERS: dict[str, type[SegmentationBuilder]] = {
    "voc": Voc,
    "coco": Coco,
    "camvid": Camvid,
    "kitti": Kitti,
    "cityscapes": Cityscapes,
}
NAMES = tuple(_BUILDERS)
_AGAIN = "prepare it again, with --overwrite"
_STAGING, _REPLACED = "incomplete.staging", "incomplete.replaced"


def builder_class(name: str) -> type[SegmentationBuilder]:
    """Return the tfds builder of a data set.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r}: must be one of {', '.join(NAMES)}")
    return _BUILDERS[name]


def find_variant(name: str, variant: str = "") -> Variant:
    """Return a variant of a data set; "" is its first.

    Raises:
        ValueError: if the data set has no such variant.
    """
    variants = {config.name: config for config in builder_class(name).BUILDER_CONFIGS}
    if variant and variant not in variants:
        raise ValueError(f"variant {variant!r}: {name} has {', '.join(variants)}")
    return variants[variant] if variant else next(iter(variants.values()))


def prepared_spec(name: str, variant: str = "") -> DatasetSpec:
    """Return the summary of a data set, with the size of the variant's images.

    Example:
        >>> prepared_spec("camvid").image_size
        (360, 480)
    """
    spec = builder_class(name).SPEC
    size = find_variant(name, variant).image_size or spec.image_size
    return dataclasses.replace(spec, image_size=size)


def default_data_dir() -> Path:
    """Return the default folder of prepared data sets, which is that of tfds."""
    home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(home).expanduser()


def prepared_dir(name: str, variant: str, data_dir: Path) -> Path:
    """Return the folder of a prepared data set, whether it exists or not.

    Args:
        name: one of `NAMES`.
        variant: one of its variants; "" is the first.
        data_dir: the folder of all prepared sets.

    Raises:
        ValueError: if the data set has no such variant.
    """
    builder, chosen = builder_class(name), find_variant(name, variant).name
    return data_dir.expanduser() / builder.name / chosen / str(builder.VERSION)


class PreparedSplit(Sequence):
    """A source of `{image, label, id}`; see `open_prepared`. Threads may share it."""

    def __init__(self, records: Any, spec: DatasetSpec, where: str):
        self._records, self._spec, self._where = records, spec, where
        self._told = False

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict:  # type: ignore[override]
        number = range(len(self))[index]
        try:
            record = self._records[number]
            if record["id"] is None:
                raise ValueError("it is empty")
        except Exception as error:  # those of array_record and protobuf share no base
            raise ValueError(
                f"{self._where}: record {number} cannot be read ({error}); {_AGAIN}"
            ) from error
        name = record["id"].decode()
        where = f"{self._where}: {name}"
        ids = np.asarray(decoded(record["label"], where))
        file = decoded(record["image"], where)
        image = np.asarray(file.convert("RGB"))
        orientation = orientation_of(file)
        upright = turned(image, orientation)
        if upright.shape[:2] == ids.shape:  # otherwise labels fit the pixels as stored
            image = upright
            if orientation > 1 and not self._told:
                self._told = True
                text = "%s: turned upright by its EXIF orientation, as others may be"
                logging.warning(text, where)
        label = self._spec.train_ids(ids, where)
        return {"image": image, "label": label, "id": name}


def open_prepared(
    name: str, spec: DatasetSpec, data_dir: str, split: str, variant: str = ""
) -> PreparedSplit:
    """Open a split of a prepared data set.

    Args:
        name: one of `NAMES`.
        spec: its summary, which maps ids on disk to train ids.
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
            f"missing); run dilax data prepare {name} --from PATH --data_dir={home}"
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
    """Open the prepared set in a folder."""
    try:
        builder = tfds.builder_from_directory(folder)
        builder.info.metadata.get("partial")  # tfds reads it only on demand
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
    """Prepare a data set once; a failure leaves no incomplete files.

    Published splits that are not in the source are left out, with a warning for each.

    Args:
        name: one of `NAMES`.
        source: a folder with archives or unpacked files, or an archive; None downloads
            the files that need no account into `data_dir`/downloads/`name`, and also
            uses the files that are already in that folder.
        data_dir: the folder of all prepared sets.
        variant: one of the data set's variants; "" is the first.
        partial: prepare the files that exist, even if images or labels are missing.
        verify: compare archives with their published checksums.
        overwrite: replace a prepared set, which is kept until the new one is complete.

    Returns:
        The folder of the prepared set.

    Raises:
        ValueError: naming the files, if the source is incomplete or not this data set;
            if nothing can be downloaded; if another process is preparing the set; or if
            the prepared set is damaged, or partial although all of it is wanted.
        OSError: if the disk is full or cannot be written to, or a download fails.
    """
    folder = prepared_dir(name, variant, data_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{folder}: another process is preparing it; wait until it has finished"
    with alone(folder.parent / ".lock", refusal):
        replaced = folder.parent / _REPLACED
        if replaced.exists() and not folder.exists():  # killed between two renames
            replaced.rename(folder)
        for leftover in folder.parent.glob("incomplete.*"):
            logging.warning("Removing an interrupted preparation: %s", leftover)
            shutil.rmtree(leftover)
        if overwrite or not folder.exists():
            _build(name, source, folder, partial, verify)
        elif _builder_at(folder).info.metadata.get("partial") and not partial:
            raise ValueError(
                f"{folder}: only part of it is prepared; --partial accepts that, "
                "--overwrite prepares it again"
            )
        home = folder.parents[2]
        made = builder_class(name)(data_dir=str(home), config=folder.parent.name)
        for line in made.absent():
            logging.warning("not prepared: %s", line)
    return folder


def _build(
    name: str, source: Path | None, folder: Path, partial: bool, verify: bool
) -> None:
    """Prepare a data set in a staging folder, then move it to its own."""
    staging, replaced = folder.parent / _STAGING, folder.parent / _REPLACED
    try:
        builder = builder_class(name)(
            data_dir=str(staging), config=folder.parent.name, file_format="array_record"
        )
        builder.partial, builder.verify = partial, verify
        downloads = folder.parents[2] / "downloads" / name
        builder.source = source or _downloaded(builder, downloads)
        builder.scratch = staging / "scratch"
        builder.scratch.mkdir(parents=True)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(None):
            builder.download_and_prepare(
                download_dir=str(builder.scratch), file_format="array_record"
            )
        if folder.exists():
            folder.rename(replaced)
        Path(builder.data_dir).rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"{folder}: the disk is full ({error.strerror}); "
            "free some space, or give another --data_dir",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _downloaded(builder: SegmentationBuilder, folder: Path) -> Path:
    """Download archives that need no account to a folder that may contain others."""
    archives = builder.archives()
    present = [archive for archive in archives if (folder / archive.name).exists()]
    if not present and not any(archive.url for archive in archives):
        raise ValueError(
            f"{builder.SPEC.name}: cannot be downloaded without an account. "
            f"{builder.HOW}"
        )
    for archive in archives:
        if archive.url:
            known = (archive.digest, archive.size) if builder.verify else ()
            try:
                download(archive.url, folder / archive.name, *known)
            except WrongFile as error:
                raise ValueError(f"{error}; --unverified accepts the file") from error
            except OSError as error:
                if error.errno:  # of this machine, such as a full disk
                    raise
                raise OSError(
                    f"{error}. Without a connection: {builder.HOW}"
                ) from error
        elif archive not in present:
            logging.warning("%s cannot be downloaded: %s", archive.name, archive.holds)
    return folder
