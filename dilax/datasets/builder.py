"""What the tfds builders of all data sets share: items in, checked examples out.

A builder says which images a split has and where their labels are. Here each pair is
decoded, checked against the `DatasetSpec`, and written: the image file as it is, the
label as a grey PNG of ids, in the order of the split's list. TensorFlow is not used.
"""

import abc
import dataclasses
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from dilax.datasets.archives import Archive, Tree
from dilax.datasets.spec import RGB, DatasetSpec

_THREADS = 4
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


@dataclasses.dataclass(kw_only=True)
class Variant(tfds.core.BuilderConfig):
    """One of the forms in which a data set can be prepared.

    Attributes:
        splits: (name, images) as published; 0 where no figure is published.
    """

    splits: tuple[tuple[str, int], ...]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
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
    BUILDER_CONFIGS: list[Variant]  # type: ignore[assignment]
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
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.SPEC.name}: {self.builder_config.description}",
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({"partial": self.partial}),
            disable_shuffling=True,
        )

    @property
    def variant(self) -> Variant:
        """The form that is prepared."""
        return self.builder_config

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

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        source = self.source or Path(dl_manager.manual_dir)
        tree = Tree(source, self.ARCHIVES, scratch=self.scratch, verify=self.verify)
        items = {name: s for name, s in self.items(tree).items() if s}
        items = self._complete(tree, items)
        self._check_space(tree, items)
        self.info.metadata["partial"] = self.partial
        return {
            name: self._generate_examples(tree, name, items[name]) for name in items
        }

    def _complete(
        self, tree: Tree, items: Mapping[str, Sequence[Item]]
    ) -> dict[str, Sequence[Item]]:
        """The items whose files are there; refuses missing ones unless partial."""
        there, problems = {}, []
        for name, listed in items.items():
            there[name] = [i for i in listed if all(f in tree for f in i[1:] if f)]
            missing = [f for i in listed for f in i[1:] if f and f not in tree]
            problems += [f"{name}: {file} is missing" for file in missing]
        for name, listed in items.items():
            published = dict(self.variant.splits).get(name, 0)
            if len(listed) != published > 0:
                problems.append(
                    f"{name}: {len(listed)} images are listed, {published} published"
                )
        if not any(there.values()):
            raise ValueError(f"{tree}: holds no {self.SPEC.name}. {self.HOW}")
        if problems and not self.partial:
            more = len(problems) - _NAMED
            raise ValueError(
                f"{tree}: not all of {self.SPEC.name} is there.\n"
                + "\n".join(problems[:_NAMED])
                + (f"\n… and {more} more" if more > 0 else "")
                + "\nGet what is missing, or give --partial to prepare what is there."
            )
        return {name: listed for name, listed in there.items() if listed}

    def _check_space(self, tree: Tree, items: Mapping[str, Sequence[Item]]) -> None:
        images = sum(tree.size(i.image) for listed in items.values() for i in listed)
        need = int(2.2 * images)  # in the order of arrival first, then in shards
        free = shutil.disk_usage(self.scratch).free
        if need > free:
            raise ValueError(
                f"{self.scratch.parent}: preparing needs about {need / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free; free some, or give another --data_dir"
            )

    def _generate_examples(
        self, tree: Tree, split: str, items: Sequence[Item]
    ) -> Iterator[tuple[str, dict]]:
        examples = grain.MapDataset.source(items).map(lambda i: self.example(tree, i))
        options = grain.ReadOptions(_THREADS, prefetch_buffer_size=4 * _THREADS)
        for example in tqdm(
            examples.to_iter_dataset(options),
            total=len(items),
            desc=f"prepare {split}",
            unit="image",
        ):
            yield example["id"], example

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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
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


def ids_of_colours(image: np.ndarray, ids: Mapping[RGB, int], name: str) -> np.ndarray:
    """(h, w, 3) uint8 colours → (h, w) uint8 ids; see `decode_colours`."""
    packed = image.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    keys = np.array([(r << 16) | (g << 8) | b for r, g, b in ids], np.uint32)
    values = np.array(list(ids.values()), np.uint8)
    order = np.argsort(keys)
    at = order[np.minimum(np.searchsorted(keys, packed, sorter=order), len(keys) - 1)]
    if (unknown := keys[at] != packed).any():
        colours = np.unique(image[unknown], axis=0)[:5].tolist()
        raise ValueError(
            f"{name}: {int(unknown.sum())} pixels have colours that stand for no class,"
            f" such as {', '.join(map(str, map(tuple, colours)))}"
        )
    return values[at]


def encode_png(ids: np.ndarray) -> bytes:
    """Ids as a grey PNG."""
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "png")
    return file.getvalue()
