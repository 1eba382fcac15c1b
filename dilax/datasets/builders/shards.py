"""Records into shard files as they come: neither memory nor disk holds them twice.

tfds's own writer gathers a split, beyond 1 GB in a file beside the shards, and reads
that back whole to sort it: more memory than most machines have for Cityscapes or COCO.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import (
    ArrayRecordWriter,
)

SHARD_BYTES = 256 << 20


def write_shards(
    template: tfds.core.ShardedFileTemplate, records: Iterable[bytes]
) -> tfds.core.SplitInfo:
    """Writes a split's records, in their order, to as many shards as they fill.

    Args:
        template: folder, data set, split and format, of which the files are named.
        records: the serialized examples.

    Returns:
        What `dataset_info.json` says about the split.

    Raises:
        OSError: if the disk is full or cannot be written.
    """
    shards: list[_Shard] = []
    for record in records:
        if not shards or shards[-1].bytes >= SHARD_BYTES:
            for full in shards[-1:]:
                full.close()
            name = f"{template.split}-{len(shards)}.unfinished"
            shards.append(_Shard(Path(template.data_dir) / name))
        shards[-1].add(record)
    for last in shards[-1:]:
        last.close()
    for index, shard in enumerate(shards):
        name = template.sharded_filepath(shard_index=index, num_shards=len(shards))
        shard.path.rename(name)
    return tfds.core.SplitInfo(
        name=template.split,
        shard_lengths=[shard.records for shard in shards],
        num_bytes=sum(shard.bytes for shard in shards),
        filename_template=template,
    )


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """The writer's errors all are RuntimeError; their text has the system's."""
    try:
        yield
    except RuntimeError as error:
        full = os.strerror(errno.ENOSPC) in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


class _Shard:
    @_system_errors()
    def __init__(self, path: Path):
        self.path, self.records, self.bytes = path, 0, 0
        # One record a chunk, to read at random; images are compressed as they are.
        self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    @_system_errors()
    def add(self, record: bytes) -> None:
        self._writer.write(record)
        self.records += 1
        self.bytes += len(record)

    @_system_errors()
    def close(self) -> None:
        self._writer.close()
