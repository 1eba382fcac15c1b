"""A small data set of balls and blocks, to prepare in every possible way."""

import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from layouts import encoded, ids, photo, unpacked
from PIL import Image

from dilax.data import prepared
from dilax.data.builders.archives import Archive
from dilax.data.builders.builder import Item, SegmentationBuilder, Variant
from dilax.data.prepared import open_prepared
from dilax.data.spec import DatasetSpec

SPEC = DatasetSpec(
    name="Toys",
    classes=("ground", "ball", "block"),
    palette=((0, 0, 0), (255, 0, 0), (0, 0, 255)),
    mean=(0.0, 0.0, 0.0),
    label_map=((0, 0), (7, 1), (9, 2), (3, 255)),
)
TRAINED = {0: 0, 7: 1, 9: 2, 3: 255, 255: 255}
SPLITS = {"train": list("zyxwvuts"), "val": list("dcba"), "test": list("kl")}
COUNTS = tuple((split, len(names)) for split, names in SPLITS.items())


class Toys(SegmentationBuilder, skip_registration=True):
    """A data set of a few small images."""

    name = "toys"
    SPEC = SPEC
    HOW = "Look under the bed."
    ARCHIVES = (
        Archive("toys.zip", holds="train, val"),
        Archive("more.zip", holds="masks of the second variant"),
        Archive("secret.zip", holds="test; with an account"),
    )
    BUILDER_CONFIGS = [
        Variant(name, name, COUNTS, archives)
        for name, archives in (("first", "^(?!more)"), ("second", ""))
    ]

    def items(self, tree):
        return {
            split: [
                Item(i, f"{i}.jpg", "" if split == "test" else f"{i}.png")
                for i in tree.lines(f"{split}.txt")
            ]
            for split in SPLITS
            if f"{split}.txt" in tree
        }


def jpeg(name):
    return encoded(photo(ord(name)), "jpg")


def raw_ids(name):
    return ids(ord(name), list(TRAINED))


def files(*splits):
    """Lists, images and labels."""
    found = {}
    for split in splits:
        found[f"{split}.txt"] = "\n".join(SPLITS[split]).encode()
        for name in SPLITS[split]:
            found[f"{name}.jpg"] = jpeg(name)
            if split != "test":
                found[f"{name}.png"] = encoded(raw_ids(name))
    return found


def left(folder):
    """What lies beside the prepared sets, and the sets themselves."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def opened(home, split="train", variant="", spec=SPEC):
    return open_prepared("toys", spec, str(home), split, variant)


def check(samples, split):
    """That samples are those of a split, in its order."""
    assert [s["id"] for s in samples] == SPLITS[split]
    for sample in samples:
        pixels = np.asarray(Image.open(io.BytesIO(jpeg(sample["id"]))))
        np.testing.assert_array_equal(sample["image"], pixels)
        labels = np.vectorize(TRAINED.get)(raw_ids(sample["id"]))
        labels = np.full_like(labels, 255) if split == "test" else labels
        np.testing.assert_array_equal(sample["label"], labels)
        assert (sample["image"].dtype, sample["label"].dtype) == (np.uint8, np.uint8)


def hanging(self, tree, item):
    """A label that never comes, of the image b."""
    if item.id == "b":
        print("hanging", file=sys.__stdout__, flush=True)
        time.sleep(600)
    return SegmentationBuilder.label(self, tree, item)


def main(mode, source, home):
    """Prepare toys in a process of its own, and read them or hang."""
    for name in prepared.NAMES:
        prepared.builder_class(name)  # imports what it needs
    prepared.builder_class = lambda name: Toys
    if mode == "hang":
        Toys.label = hanging
    prepared.prepare("toys", Path(source), Path(home))
    found = [sample["id"] for sample in opened(home, "val")]
    print(*found, "tensorflow" in sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])


@pytest.fixture(autouse=True)
def as_toys(monkeypatch):
    """The builder of toys, under any name."""
    monkeypatch.setattr(prepared, "builder_class", lambda name: Toys)


@pytest.fixture
def source(tmp_path):
    return unpacked(tmp_path / "source", files(*SPLITS))


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def variant_dir(home):
    """The folder in which the first variant is made."""
    return home / "toys/first"
