"""Cityscapes, prepared from its archives and from unpacked folders."""

import dataclasses
import json
from itertools import chain

import numpy as np
import pytest
from layouts import by_id, encoded, ids, photo, unpacked, zipped
from PIL import Image

from dilax.data import DATASETS
from dilax.data.builders.urban import Cityscapes
from dilax.data.prepared import open_prepared, prepare

SPEC = DATASETS["cityscapes"]
RAW = dataclasses.replace(SPEC, label_map=tuple((i, i) for i in range(34)))
# The raw ids of the 19 classes, in the order of the train ids.
CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
NAMES = {
    "train": ["aachen_000000_000019", "bochum_000000_000313"],
    "val": ["munster_000173_000019"],
    "test": ["berlin_000000_000019", "bonn_000001_000019"],
    "train_extra": ["troisdorf_000000_000072", "troisdorf_000000_000074"],
}
SEEDS = {name: seed for seed, name in enumerate(chain(*NAMES.values()))}


def image_of(split, name):
    return f"leftImg8bit/{split}/{name.split('_')[0]}/{name}_leftImg8bit.png"


def label_of(split, name):
    kind = "gtCoarse" if split == "train_extra" else "gtFine"
    return f"{kind}/{split}/{name.split('_')[0]}/{name}_{kind}_labelIds.png"


def raw_label(name):
    return ids(SEEDS[name], range(34))


def published(*splits):
    """Images and labels of the splits, and what else lies beside the labels."""
    images, labels = {}, {}
    for split in splits:
        for name in NAMES[split]:
            images[image_of(split, name)] = encoded(photo(SEEDS[name]))
            file, color = label_of(split, name), encoded(photo(0))
            labels[file] = encoded(raw_label(name))
            labels[file.replace("labelIds", "color")] = color
            labels[file.replace("labelIds", "instanceIds")] = color
    return images, labels


@pytest.fixture
def few(monkeypatch):
    """As if no more had been published than the layouts here have."""
    for variant in Cityscapes.BUILDER_CONFIGS:
        counts = tuple((name, len(NAMES[name])) for name, _ in variant.splits)
        monkeypatch.setattr(variant, "splits", counts)


def opened(home, split, variant="", spec=SPEC):
    return open_prepared("cityscapes", spec, str(home), split, variant)


def downloaded(folder):
    """The four archives."""
    for archives, splits in (
        (("leftImg8bit_trainvaltest", "gtFine_trainvaltest"), ("train", "val", "test")),
        (("leftImg8bit_trainextra", "gtCoarse"), ("train_extra",)),
    ):
        for archive, files in zip(archives, published(*splits), strict=True):
            zipped(folder / f"{archive}.zip", {"README": b"", **files})
    return folder


def apart(folder):
    """Every archive unpacked into a folder of its own."""
    images, labels = published("train", "val", "test")
    unpacked(folder / "leftImg8bit_trainvaltest", images)
    unpacked(folder / "gtFine_trainvaltest", labels)
    images, labels = published("train_extra")
    unpacked(folder / "leftImg8bit_trainextra", images)
    return unpacked(folder / "gtCoarse", labels)


@pytest.mark.parametrize("layout", [downloaded, apart])
def test_both_variants_are_prepared_pixel_for_pixel(few, tmp_path, layout):
    layout(tmp_path / "downloads")
    train_ids = np.full(34, 255)
    train_ids[list(CLASSES)] = np.arange(19)
    for variant, names in (
        ("fine", ("train", "val", "test")),
        ("fine_and_coarse", NAMES),
    ):
        prepare("cityscapes", tmp_path / "downloads", tmp_path, variant=variant)
        for split in names:
            found = by_id(opened(tmp_path, split, variant))
            raw = by_id(opened(tmp_path, split, variant, RAW))
            assert list(found) == NAMES[split]
            for name, sample in found.items():
                np.testing.assert_array_equal(sample["image"], photo(SEEDS[name]))
                np.testing.assert_array_equal(raw[name]["label"], raw_label(name))
                expected = train_ids[raw_label(name)]
                np.testing.assert_array_equal(sample["label"], expected)


def test_the_fine_variant_leaves_the_coarse_archives_closed(few, tmp_path):
    source = downloaded(tmp_path / "downloads")
    for archive in ("leftImg8bit_trainextra.zip", "gtCoarse.zip"):
        (source / archive).write_bytes(b"PK: not whole")
    prepare("cityscapes", source, tmp_path)
    with pytest.raises(ValueError, match=r"gtCoarse\.zip: is not a complete zip"):
        prepare("cityscapes", source, tmp_path, variant="fine_and_coarse")


@pytest.mark.parametrize("black", ["there", "without image"])
def test_the_black_image_is_left_out_whether_it_is_there_or_not(few, tmp_path, black):
    source = apart(tmp_path / "downloads").parent
    name = "troisdorf_000000_000073"
    files = {f"gtCoarse/{label_of('train_extra', name)}": encoded(np.zeros((6, 8)))}
    if black == "there":
        image = image_of("train_extra", name)
        files[f"leftImg8bit_trainextra/{image}"] = encoded(np.zeros((6, 8)))
    unpacked(source, files)
    prepare("cityscapes", source, tmp_path, variant="fine_and_coarse")
    extra = by_id(opened(tmp_path, "train_extra", "fine_and_coarse"))
    assert list(extra) == NAMES["train_extra"]


def test_only_the_test_split_may_be_without_labels(few, tmp_path):
    images, labels = published("train", "val", "test")
    kept = {name: label for name, label in labels.items() if "/test/" not in name}
    prepare("cityscapes", unpacked(tmp_path / "files", images | kept), tmp_path)
    for sample in opened(tmp_path, "test"):
        np.testing.assert_array_equal(sample["image"], photo(SEEDS[sample["id"]]))
        np.testing.assert_array_equal(sample["label"], np.full((6, 8), 255))


def test_test_labels_without_images_are_no_split(few, tmp_path):
    images, labels = published("train", "val", "test")
    kept = {name: image for name, image in images.items() if "/test/" not in name}
    prepare("cityscapes", unpacked(tmp_path / "files", kept | labels), tmp_path)
    with pytest.raises(ValueError, match="has no split 'test'; there are train, val"):
        opened(tmp_path, "test")


def test_images_without_labels_and_labels_without_images_are_named(few, tmp_path):
    images, labels = published("train", "val", "test")
    files = images | labels
    missing = [
        image_of("train", "aachen_000000_000019"),
        label_of("train", "bochum_000000_000313"),
    ]
    for file in missing:
        del files[file]
    source = unpacked(tmp_path / "files", files)
    with pytest.raises(ValueError) as error:
        prepare("cityscapes", source, tmp_path)
    for file in missing:
        assert f"\ntrain: {file} is missing" in str(error.value)
    assert str(error.value).count(".png is missing") == 2


def test_the_published_counts_are_expected():
    fine, coarse = (dict(variant.splits) for variant in Cityscapes.BUILDER_CONFIGS)
    assert fine == {"train": 2975, "val": 500, "test": 1525}
    assert coarse == {**fine, "train_extra": 19997}


def test_real_cityscapes_is_prepared_pixel_for_pixel(tmp_path, real_data):
    source = real_data / "cityscapes"
    rows = json.loads((source / "labels_table.json").read_text())
    train_ids = {row["id"]: row["trainId"] for row in rows}
    table = np.array([train_ids.get(i, 255) % 256 for i in range(256)])
    prepare("cityscapes", source, tmp_path, partial=True)
    train = by_id(opened(tmp_path, "train"))
    assert len(train) == 8
    for name, sample in train.items():
        with Image.open(source / image_of("train", name)) as image:
            np.testing.assert_array_equal(sample["image"], image)
        with Image.open(source / label_of("train", name)) as label:
            expected = table[np.asarray(label)]
        np.testing.assert_array_equal(sample["label"], expected)
