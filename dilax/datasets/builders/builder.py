"""What the tfds builders of all data sets share: items in, checked examples out.

A builder says which images a split has and where their labels are. Here each pair is
decoded, checked against the `DatasetSpec`, and written: the image file as it is, the
label as a grey PNG of ids, in the order of the split's list. TensorFlow is not used.
"""

import abc
import contextlib
import dataclasses
import errno
import io
import re
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from dilax.datasets.builders.archives import Archive, Tree
from dilax.datasets.builders.inventory import Item as Item
from dilax.datasets.builders.inventory import take_inventory
from dilax.datasets.builders.shards import write_shards
from dilax.datasets.spec import RGB, DatasetSpec, ids_of_colours

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
    MANUAL_DOWNLOAD_INSTRUCTIONS = "python -m dilax.datasets list"
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
