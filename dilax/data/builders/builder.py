"""What the tfds builders of all data sets share: items in, checked examples out.

A builder says which images a split has and where their labels are. Here each pair is
decoded, checked against the `DatasetSpec`, and written: the image file as it is, the
label as a grey PNG of ids, in the order of the split's list. TensorFlow is not used.

What a data set lists, against what of it is there.

Records into shard files as they come: neither memory nor disk holds them twice.

tfds's own writer gathers a split, beyond 1 GB in a file beside the shards, and reads
that back whole to sort it: more memory than most machines have for Cityscapes or COCO.
"""

import abc
import contextlib
import dataclasses
import errno
import io
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import (
    ArrayRecordWriter,
)
from PIL import Image
from tqdm import tqdm

from dilax.data.builders.archives import Archive, Tree
from dilax.data.spec import RGB, DatasetSpec, ids_of_colours

_NAMED = 100


class Item(NamedTuple):
    """An image of a split.

    Attributes:
        id: as the data set's lists name it.
        image: the image's file in the tree.
        label: the label's file in the tree, or "" if it is not a file or not given.
    """

    id: str
    image: str
    label: str = ""


class Inventory(NamedTuple):
    """What `take_inventory` finds.

    Attributes:
        whole: the items of each split whose files are all there.
        problems: what else there should be, in words.
    """

    whole: dict[str, list[Item]]
    problems: list[str]

    def listing(self) -> str:
        """The problems a line each, up to a hundred."""
        more = len(self.problems) - _NAMED
        rest = [f"… and {more} more"] if more > 0 else []
        return "".join(f"\n{line}" for line in self.problems[:_NAMED] + rest)


def take_inventory(
    tree: Tree, items: Mapping[str, Sequence[Item]], published: Mapping[str, int]
) -> Inventory:
    """Compares the lists of a data set with its files, and with what is published.

    Args:
        tree: the files.
        items: the listed items of each split.
        published: the images of each split; 0 where it is not known.

    Returns:
        What there is. A split of which there is no file at all is in neither part.
    """
    whole, problems = {}, []
    for split, listed in items.items():
        missing = [f for item in listed for f in _files(item) if f not in tree]
        if len(missing) == sum(len(_files(item)) for item in listed):
            continue
        whole[split] = [i for i in listed if all(f in tree for f in _files(i))]
        problems += [f"{split}: {file} is missing" for file in missing]
        count, known = len(listed), published.get(split, 0)
        if count != known > 0:
            problems.append(f"{split}: {count} images are listed, {known} published")
    return Inventory({s: listed for s, listed in whole.items() if listed}, problems)


def _files(item: Item) -> list[str]:
    return [file for file in (item.image, item.label) if file]


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


_THREADS = 4
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclasses.dataclass(kw_only=True)
class Variant(tfds.core.BuilderConfig):
    """One of the forms in which a data set can be prepared.

    Attributes:
        splits: (name, images) as published; 0 where no figure is published.
    """

    splits: tuple[tuple[str, int], ...]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing of ours lies there, and looking leaves a folder in /tmp."""


class SegmentationBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Base of the builders; see the module.

    Attributes:
        SPEC: the data set's facts; ids on disk are those of its `label_map`.
        ARCHIVES: the files that its publisher gives.
        HOMEPAGE: where it comes from.
        HOW: what `--from` may name, and how one gets it.
        source: where the files are; None takes tfds's `manual_dir`.
        partial: prepare what is there, even if images or labels are missing.
        verify: compare archives with their published checksums.
        scratch: folder for what must be unpacked to be read.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "dilax data list"
    BUILDER_CONFIGS: list[Variant]
    SPEC: DatasetSpec
    ARCHIVES: tuple[Archive, ...] = ()
    HOMEPAGE = ""
    HOW = ""

    source: Path | None = None
    partial = False
    verify = True
    scratch: Path

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.LabeledImage(
            labels=list(self.SPEC.classes),
            shape=(None, None, 1),
            encoding_format="png",
        )
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": label,
            "id": tfds.features.Text(),
        }
        return _Info(
            builder=self,
            description=f"{self.SPEC.name}: {self.builder_config.description}",
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({"partial": False}),
            disable_shuffling=True,
        )

    @property
    def variant(self) -> Variant:
        """The form that is prepared."""
        return self.builder_config

    def archives(self) -> Sequence[Archive]:
        """The files that the variant is made of, all of `ARCHIVES` unless it says."""
        return self.ARCHIVES

    @abc.abstractmethod
    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """The images of each split; splits whose files are not there may be left out.

        Raises:
            ValueError: if the tree does not hold this data set.
        """

    def image(self, tree: Tree, item: Item) -> bytes:
        """The image as it is to be stored: encoded."""
        return tree.read(item.image)

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """(h, w) uint8 ids; None if the images are published without labels."""
        return decode_ids(tree, item.label) if item.label else None

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = self.source or Path(dl_manager.manual_dir)
        tree = Tree(source, self.archives(), scratch=self.scratch, verify=self.verify)
        items = self._complete(tree, self.items(tree))
        self._check_space(tree, items)
        return {
            name: self._generate_examples(tree, name, items[name]) for name in items
        }

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list:
        """See `write_shards` for why this is not left to tfds."""
        splits = []
        for name, examples in self._split_generators(dl_manager).items():
            template = self._get_filename_template(split_name=name)
            serialize = self.info.features.serialize_example
            with contextlib.closing(examples):
                records = (serialize(example) for _, example in examples)
                splits.append(write_shards(template, records))
        return splits

    def _complete(
        self, tree: Tree, items: Mapping[str, Sequence[Item]]
    ) -> dict[str, list[Item]]:
        """The items whose files are there; refuses missing ones unless partial."""
        found = take_inventory(tree, items, dict(self.variant.splits))
        if not found.whole:
            listing = found.listing()
            raise ValueError(f"{tree}: holds no {self.SPEC.name}. {self.HOW}{listing}")
        if found.problems and not self.partial:
            raise ValueError(
                f"{tree}: not all of {self.SPEC.name} is there.{found.listing()}"
                "\nGet what is missing, or give --partial to prepare what is there."
            )
        self.info.metadata["partial"] = bool(found.problems)
        return found.whole

    def absent(self) -> list[str]:
        """The variant's splits that the prepared set has not, and what holds them."""
        lines = []
        for split, _ in self.variant.splits:
            if split not in self.info.splits:
                holding = [
                    f"{archive.name}: {archive.holds}"
                    for archive in self.archives()
                    if re.search(rf"\b{split}\b", archive.holds)
                ]
                lines.append(split + (f" ({', '.join(holding)})" if holding else ""))
        return lines

    def _check_space(self, tree: Tree, items: Mapping[str, Sequence[Item]]) -> None:
        images = sum(tree.size(i.image) for listed in items.values() for i in listed)
        need = int(1.1 * images)  # with the labels
        free = shutil.disk_usage(self.scratch).free
        if need > free:
            raise OSError(
                errno.ENOSPC,
                f"preparing {self.SPEC.name} needs about {need / 1e9:.1f} GB and "
                f"{free / 1e9:.1f} GB are free",
            )

    def _generate_examples(
        self, tree: Tree, split: str, items: Sequence[Item]
    ) -> Iterator[tuple[str, dict]]:
        examples = grain.MapDataset.source(items).map(lambda i: self.example(tree, i))
        options = grain.ReadOptions(_THREADS, prefetch_buffer_size=4 * _THREADS)
        with tqdm(total=len(items), desc=f"prepare {split}", unit="image") as bar:
            for example in examples.to_iter_dataset(options):
                yield example["id"], example
                bar.update()

    def example(self, tree: Tree, item: Item) -> dict:
        """The checked example of an item.

        Raises:
            ValueError: naming the file, if image or label cannot be read, do not fit
                together, or the label holds ids that the data set does not have.
        """
        content = self.image(tree, item)
        with decoded(content, item.image) as image:
            height, width = image.height, image.width
        label = self.label(tree, item)
        if label is None:
            label = np.full((height, width), self.SPEC.ignore_label, np.uint8)
        where = item.label or f"label of {item.id}"
        if label.shape != (height, width):
            raise ValueError(
                f"{where}: is {label.shape[1]}x{label.shape[0]}, "
                f"its image {item.image} {width}x{height}"
            )
        ids = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
        wrong = [int(i) for i in ids if self.SPEC.label_table()[i] < 0]
        if wrong:
            raise ValueError(
                f"{where}: label ids {wrong} are none of {self.SPEC.name}'s "
                f"{self.SPEC.num_classes} classes, nor ignored"
            )
        return {"image": content, "label": encode_png(label), "id": item.id}


def decoded(content: bytes, name: str) -> Image.Image:
    """The wholly decoded image.

    Raises:
        ValueError: naming the file, if it is no image or damaged.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return image
    except _UNREADABLE as error:
        raise ValueError(f"{name}: cannot be read as an image ({error})") from error


def decode_ids(tree: Tree, name: str) -> np.ndarray:
    """(h, w) uint8 ids of a grey or palette image.

    Raises:
        ValueError: naming the file, if it is another kind of image.
    """
    image = decoded(tree.read(name), name)
    if image.mode not in ("P", "L", "1"):
        raise ValueError(f"{name}: is not an image of label ids but of {image.mode}")
    return np.asarray(image).astype(np.uint8)


def decode_colours(tree: Tree, name: str, ids: Mapping[RGB, int]) -> np.ndarray:
    """(h, w) uint8 ids of a colour image.

    Args:
        tree: where the file is.
        name: the file.
        ids: the id of each colour.

    Raises:
        ValueError: naming the file and the colours that are not among them.
    """
    image = decoded(tree.read(name), name).convert("RGB")
    return ids_of_colours(np.asarray(image), ids, name)


def encode_png(ids: np.ndarray) -> bytes:
    """Ids as a grey PNG."""
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "png")
    return file.getvalue()
