"""The base class of the tfds builders of all data sets.

A builder lists the images of each split and their labels. The base class decodes each
pair, checks it against the `DatasetSpec`, and writes it: the image file unchanged, the
label as a grey PNG of ids, in the order of the split's list. TensorFlow is not used.
"""

import abc
import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from dilax.data.builders.archives import Archive, Tree
from dilax.data.pixels import naming, open_image, orientation_of
from dilax.data.spec import DatasetSpec
from dilax.runtime.files import check_room

SHARD_BYTES = 256 << 20
_NAMED = 100  # number of problems that a message lists
_THREADS = 4
_MOST_PIXELS = 1 << 24  # of an image; the largest data set has an eighth of it


class Item(NamedTuple):
    """An image of a split.

    Attributes:
        id: its name in the data set's lists.
        image: the image's file in the tree.
        label: the label's file in the tree, or "" if it is not a file or not given.
    """

    id: str
    image: str
    label: str = ""

    def files(self) -> list[str]:
        """The files that the item needs."""
        return [file for file in (self.image, self.label) if file]


class Variant(tfds.core.BuilderConfig):
    """One of the forms in which a data set can be prepared.

    Attributes:
        name: of the variant.
        description: for `dilax data list`.
        splits: (name, number of images) as published; 0 if no number is published.
        archives: a pattern of the names of the archives that contain it.
        image_size: (height, width) of its images, if it differs from the data set's.
    """

    def __init__(
        self,
        name: str,
        description: str,
        splits: tuple[tuple[str, int], ...],
        archives: str = "",
        image_size: tuple[int, int] | None = None,
    ):
        super().__init__(name=name, description=description)
        self.splits, self.archives, self.image_size = splits, archives, image_size


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Skip tfds's bucket, which has none of ours and would leave files in /tmp."""


class SegmentationBuilder(  # type: ignore[call-arg]
    tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True
):
    """Base class of the builders.

    Attributes:
        SPEC: summary of the data set; ids on disk are those of its `label_map`.
        ARCHIVES: the files that its publisher offers.
        HOMEPAGE: address of its website.
        HOW: what `--from` accepts, and how to get it.
        source: where the files are; None uses tfds's `manual_dir`.
        partial: prepare the files that exist, even if images or labels are missing.
        verify: compare archives with their published checksums.
        scratch: folder for archives that must be unpacked to be read.
        problems: what `items` found wrong besides missing files and wrong numbers.
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
    problems: Sequence[str] = ()

    @property
    def variant(self) -> Variant:
        """The form that is prepared."""
        return self.builder_config

    def archives(self) -> list[Archive]:
        """The archives that contain the variant."""
        return [a for a in self.ARCHIVES if re.search(self.variant.archives, a.name)]

    @abc.abstractmethod
    def items(self, tree: Tree) -> Mapping[str, Sequence[Item]]:
        """List the images of each split; splits without files may be left out.

        Raises:
            ValueError: if the tree does not contain this data set.
        """

    def image(self, tree: Tree, item: Item) -> bytes:
        """Return the image as it is stored: encoded."""
        return tree.read(item.image)

    def label(self, tree: Tree, item: Item) -> np.ndarray | None:
        """Return (h, w) uint8 ids; None if the images are published without labels.

        Raises:
            ValueError: naming the file, if it cannot be read or does not contain ids.
        """
        if not item.label:
            return None
        image = decoded(tree.read(item.label), item.label)
        if image.mode not in ("P", "L", "1"):
            raise ValueError(
                f"{item.label}: is not an image of label ids; its mode is {image.mode}"
            )
        return np.asarray(image).astype(np.uint8)

    def example(self, tree: Tree, item: Item) -> dict:
        """Read and check an item.

        Raises:
            ValueError: naming the file, if image or label cannot be read or differ in
                size, or the label contains ids that the data set does not have.
        """
        content = self.image(tree, item)
        with decoded(content, item.image) as image:
            stored = image.height, image.width
            upright = stored[::-1] if orientation_of(image) >= 5 else stored
        label = self.label(tree, item)
        if label is None:
            label = np.full(upright, self.SPEC.ignore_label, np.uint8)
        where = item.label or f"label of {item.id}"
        if label.shape not in (stored, upright):
            raise ValueError(
                f"{where}: is {label.shape[1]}x{label.shape[0]}, "
                f"its image {item.image} {stored[1]}x{stored[0]}"
            )
        self.SPEC.train_ids(label, where)  # refuses other ids
        return {"image": content, "label": encode_png(label), "id": item.id}

    def absent(self) -> list[str]:
        """Return the splits that are not prepared, with the archives they are in."""
        lines = []
        missing = [s for s, _ in self.variant.splits if s not in self.info.splits]
        for split in missing:
            holding = ", ".join(
                f"{archive.name}: {archive.holds}"
                for archive in self.archives()
                if re.search(rf"\b{split}\b", archive.holds)
            )
            lines.append(f"{split} ({holding})" if holding else split)
        return lines

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.LabeledImage(
                labels=list(self.SPEC.classes),
                shape=(None, None, 1),
                encoding_format="png",
            ),
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

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Write the splits with `write_shards` instead of tfds's writer; see there."""
        source = self.source or Path(dl_manager.manual_dir)
        tree = Tree(source, self.archives(), scratch=self.scratch, verify=self.verify)
        items = self._complete(tree, self.items(tree))
        images = sum(tree.size(i.image) for listed in items.values() for i in listed)
        need = int(1.1 * images)  # a tenth is for the labels
        check_room(self.scratch, need, f"preparing {self.SPEC.name} needs about")

        def record(item: Item) -> bytes:
            return self.info.features.serialize_example(self.example(tree, item))

        options = grain.ReadOptions(_THREADS, prefetch_buffer_size=4 * _THREADS)
        splits = []
        for name, listed in items.items():
            records = grain.MapDataset.source(listed).map(record)
            records = records.to_iter_dataset(options)
            template = self._get_filename_template(name)
            with tqdm(records, f"prepare {name}", len(listed), unit="image") as shown:
                splits.append(write_shards(template, iter(shown)))
        self.info.set_splits(tfds.core.splits.SplitDict(splits))

    def _complete(
        self, tree: Tree, items: Mapping[str, Sequence[Item]]
    ) -> dict[str, list[Item]]:
        """Select items whose files exist; refuse missing ones unless partial."""
        complete, problems = {}, []
        published = dict(self.variant.splits)
        for split, listed in items.items():
            files = [file for item in listed for file in item.files()]
            missing = [file for file in files if file not in tree]
            if len(missing) == len(files):
                continue  # a list alone is not a split
            complete[split] = [i for i in listed if all(f in tree for f in i.files())]
            problems += [f"{split}: {file} is missing" for file in missing]
            if published.get(split, 0) not in (0, len(listed)):
                problems.append(
                    f"{split}: {len(listed)} images are listed, "
                    f"{published[split]} published"
                )
        complete = {split: listed for split, listed in complete.items() if listed}
        problems += self.problems
        listing = "".join(f"\n{problem}" for problem in problems[:_NAMED])
        if len(problems) > _NAMED:
            listing += f"\n… and {len(problems) - _NAMED} more"
        if not complete:
            raise ValueError(
                f"{tree}: contains no {self.SPEC.name}. {self.HOW}{listing}"
            )
        if problems and not self.partial:
            raise ValueError(
                f"{tree}: {self.SPEC.name} is incomplete.{listing}"
                "\nGet the missing files, or give --partial to prepare the others."
            )
        self.info.metadata["partial"] = bool(problems)
        return complete


def decoded(content: bytes, name: str) -> Image.Image:
    """Decode an image completely.

    Raises:
        ValueError: naming the file, if it is not an image or damaged.
    """
    with naming(name):
        image = open_image(content)
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"it has {image.width}x{image.height} pixels")
        image.load()
        return image


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode ids as a grey PNG, or (h, w, 3) pixels as an RGB one."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_shards(
    template: tfds.core.ShardedFileTemplate, records: Iterator[bytes]
) -> tfds.core.SplitInfo:
    """Write a split's records, in their order, to as many shards as they fill.

    tfds's own writer collects a split in memory or, beyond 1 GB, in a file beside the
    shards, and reads that back to sort it. For COCO, this needs more memory than most
    machines have.

    Args:
        template: folder, data set, split, and format, which give the file names.
        records: the serialized examples.

    Returns:
        The split's entry in `dataset_info.json`.

    Raises:
        OSError: if the disk is full or cannot be written to.
    """
    files: list[Path] = []
    lengths: list[int] = []
    sizes: list[int] = []
    writer: Any = None
    for record in records:
        with _system_errors():
            if not sizes or sizes[-1] >= SHARD_BYTES:
                if writer:
                    writer.close()
                name = f"{template.split}-{len(files)}.unfinished"
                files.append(Path(template.data_dir) / name)
                lengths.append(0)
                sizes.append(0)
                # One record per chunk, to read at random; images are compressed.
                writer = ArrayRecordWriter(str(files[-1]), "group_size:1,uncompressed")
            writer.write(record)
        lengths[-1] += 1
        sizes[-1] += len(record)
    if writer:
        with _system_errors():
            writer.close()
    for i, file in enumerate(files):
        file.rename(template.sharded_filepath(shard_index=i, num_shards=len(files)))
    return tfds.core.SplitInfo(
        name=template.split,
        shard_lengths=lengths,
        num_bytes=sum(sizes),
        filename_template=template,
    )


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Turn the writer's errors, which are all RuntimeErrors, into OSErrors."""
    try:
        yield
    except RuntimeError as error:
        full = os.strerror(errno.ENOSPC) in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
