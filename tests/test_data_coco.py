"""COCO: objects and segments become exactly these pixels."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from coco_files import (
    HEIGHT,
    INSTANCES_TRAIN,
    LABELS,
    PERSON,
    SOFA,
    WIDTH,
    archives_of,
    box,
    class_of,
    coco_files,
    image_of,
    json_of,
    label_of,
    object_of,
    opened,
    photo,
    prepared,
    unpack,
    write_zip,
)
from coco_files import few_images as few_images  # a fixture for all that follows

from dilax.data.builders.coco import Coco


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return archives_of(tmp_path_factory.mktemp("archives"), coco_files())


@pytest.fixture(scope="module")
def instances(source, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("instances")
    prepared(source, data_dir)
    return data_dir


@pytest.fixture(scope="module")
def panoptic(source, tmp_path_factory):
    return prepared(source, tmp_path_factory.mktemp("panoptic"), "panoptic_2017")


# What is prepared.


def test_the_variants():
    names = [variant.name for variant in Coco.BUILDER_CONFIGS]
    assert names == ["instances_2017", "instances_2014", "panoptic_2017"]
    assert all(archive.size and len(archive.digest) == 64 for archive in Coco.ARCHIVES)


def test_images_with_a_single_object_of_vocs_are_taken(instances):
    assert [*opened(instances, "train")] == ["000000000009"]
    assert [*opened(instances, "val")] == ["000000000139", "000000000285"]


@pytest.mark.parametrize("image", LABELS)
def test_objects_are_painted_to_the_pixel(instances, image):
    samples = opened(instances, "train") | opened(instances, "val")
    np.testing.assert_array_equal(samples[image]["label"], LABELS[image])


def test_image_files_keep_their_bytes(instances):
    folder = instances / "dilax_coco" / "instances_2017" / "1.0.0"
    records = tfds.builder_from_directory(folder).as_data_source(
        "val", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert [r["image"] for r in records] == [photo(), photo(grey=True)]
    grey = opened(instances, "val")["000000000285"]["image"]
    assert grey.shape == (HEIGHT, WIDTH, 3) and (grey == 90).all()


def test_unpacked_files_give_the_same(instances, tmp_path):
    prepared(unpack(tmp_path / "coco" / "here", coco_files()), tmp_path)
    for split in ("train", "val"):
        one, other = opened(instances, split), opened(tmp_path, split)
        assert [*one] == [*other]
        for image, sample in one.items():
            np.testing.assert_array_equal(sample["label"], other[image]["label"])


def test_2014_has_names_and_a_split_of_its_own(tmp_path):
    name = "COCO_train2014_000000000009"
    listed = INSTANCES_TRAIN | {"images": [image_of(9, f"{name}.jpg")]}
    write_zip(tmp_path / "train2014.zip", {f"train2014/{name}.jpg": photo()})
    write_zip(
        tmp_path / "annotations_trainval2014.zip",
        {
            "annotations/instances_train2014.json": listed,
            "annotations/instances_val2014.json": listed,
        },
    )
    folder = prepared(tmp_path, tmp_path, "instances_2014")
    samples = opened(tmp_path, "train", "instances_2014")
    np.testing.assert_array_equal(samples[name]["label"], LABELS["000000000009"])
    assert [*samples] == [name]
    assert [*tfds.builder_from_directory(folder).info.splits] == ["train"]


def test_every_image_gets_its_own_label(tmp_path):
    """Labels are made in several threads."""
    numbers = range(1, 61)
    files = {f"val2017/{n:012}.jpg": photo() for n in numbers}
    files["annotations/instances_val2017.json"] = json_of(
        [image_of(n, f"{n:012}.jpg") for n in numbers],
        [object_of(n, "cat", box(n % 10, n // 10, n % 10 + 1, 8)) for n in numbers],
    )
    prepared(unpack(tmp_path, files), tmp_path, partial=True)
    samples = opened(tmp_path, "val")
    assert [*samples] == [f"{n:012}" for n in numbers]
    for n, sample in zip(numbers, samples.values(), strict=True):
        cat = (n % 10, n // 10, n % 10 + 1, 8, class_of("cat"))
        np.testing.assert_array_equal(sample["label"], label_of(cat))


def test_nothing_imports_tensorflow(source, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dilax.data import prepared, spec\n"
        "from dilax.data.builders import coco\n"
        "folder, source = map(Path, sys.argv[1:])\n"
        "prepared.prepare('coco', source, folder, partial=True, verify=False)\n"
        "split = prepared.open_prepared('coco', spec.COCO, str(folder), 'val')\n"
        "print(split[1]['label'].max(), 'tensorflow' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["255", "False"]


# The panoptic variant.


PANOPTIC = {
    "000000000139": label_of(
        (1, 1, 7, 6, SOFA), (2, 2, 4, 5, PERSON), (0, 7, 10, 8, 255)
    ),
    "000000000285": label_of((0, 0, 10, 8, 255)),
}


def _assert_panoptic(data_dir):
    samples = opened(data_dir, "val", "panoptic_2017")
    assert [*samples] == [*PANOPTIC]
    for image, label in PANOPTIC.items():
        np.testing.assert_array_equal(samples[image]["label"], label)


def test_segments_are_looked_up_to_the_pixel(panoptic):
    _assert_panoptic(panoptic.parents[2])
    assert [*tfds.builder_from_directory(panoptic).info.splits] == ["val"]
