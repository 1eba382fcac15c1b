"""KITTI with the labels of Ros et al., prepared from layouts as published."""

import numpy as np
import pytest
from layouts import encoded, photo, unpacked, zipped
from PIL import Image

from dilax.data import DATASETS
from dilax.data.prepared import open_prepared, prepare

SPEC = DATASETS["kitti"]
# The colours of the published labels, in the order of the train ids.
COLOURS = np.array(
    [
        (128, 0, 0),  # building
        (128, 128, 0),  # tree
        (128, 128, 128),  # sky
        (64, 0, 128),  # car
        (192, 128, 128),  # sign
        (128, 64, 128),  # road
        (64, 64, 0),  # pedestrian
        (64, 64, 128),  # fence
        (192, 192, 128),  # pole
        (0, 0, 192),  # sidewalk
        (0, 128, 192),  # bicyclist
        (0, 0, 0),  # void
    ],
    np.uint8,
)
TRAIN = [f"{20 * i:06}" for i in range(100)]
TEST = [f"{50 + 7 * i:06}" for i in range(46)]


def drawn(seed, height=6, width=8):
    """Train ids, and the same in colours."""
    ids = np.random.default_rng(seed).integers(0, 12, (height, width))
    return np.where(ids == 11, 255, ids), COLOURS[ids]


def published(top=""):
    """All 146 pairs; the images of the two sequences differ in size, as the real do."""
    files = {}
    for folder, names, size in (("Training_00", TRAIN, 4), ("Validation_07", TEST, 3)):
        for seed, name in enumerate(names):
            files[f"{top}{folder}/RGB/{name}.png"] = encoded(photo(seed, size, 5))
            files[f"{top}{folder}/GT/{name}.png"] = encoded(drawn(seed, size, 5)[1])
    return files


def splits(home, *names):
    return [open_prepared("kitti", SPEC, str(home), name) for name in names]


@pytest.mark.parametrize("layout", ["zip", "unpacked"])
def test_all_of_kitti_is_prepared_pixel_for_pixel(tmp_path, layout):
    if layout == "zip":
        source = zipped(tmp_path / "any_name.zip", published("KITTI_SEMANTIC/"))
    else:
        source = unpacked(tmp_path / "kitti", published())
    prepare("kitti", source, tmp_path)
    train, test = splits(tmp_path, "train", "test")
    assert [sample["id"] for sample in train] == TRAIN
    assert [sample["id"] for sample in test] == TEST
    for split, height in ((train, 4), (test, 3)):
        for seed, sample in enumerate(split):
            np.testing.assert_array_equal(sample["image"], photo(seed, height, 5))
            np.testing.assert_array_equal(sample["label"], drawn(seed, height, 5)[0])


def test_what_is_missing_is_named_or_noticed_by_the_count(tmp_path):
    source = unpacked(tmp_path / "kitti", published())
    missing = "Training_00/RGB/000040.png", "Validation_07/GT/000365.png"
    for file in missing:
        (source / file).unlink()
    with pytest.raises(ValueError) as error:
        prepare("kitti", source, tmp_path)
    assert f"train: {missing[0]} is missing" in str(error.value)
    assert f"test: {missing[1]} is missing" in str(error.value)
    assert str(error.value).count(".png is missing") == 2
    (source / missing[0].replace("RGB", "GT")).unlink()
    with pytest.raises(ValueError, match="train: 99 images are listed, 100 published"):
        prepare("kitti", source, tmp_path)
    prepare("kitti", source, tmp_path, partial=True)
    assert [len(split) for split in splits(tmp_path, "train", "test")] == [99, 45]


def test_a_colour_of_no_class_is_named(tmp_path):
    files = {
        "Training_00/RGB/a.png": encoded(photo(0)),
        "Training_00/GT/a.png": encoded(np.full((6, 8, 3), 63)),
    }
    source = unpacked(tmp_path / "kitti", files)
    message = r"GT/a.png: 48 pixels have colours .* such as \(63, 63, 63\)"
    with pytest.raises(ValueError, match=message):
        prepare("kitti", source, tmp_path, partial=True)


def test_real_kitti_is_prepared_pixel_for_pixel(tmp_path, real_data):
    source = real_data / "KITTI_SEMANTIC"
    if not source.is_dir():
        pytest.skip("there is no KITTI in the real data")
    prepare("kitti", source, tmp_path)
    for split, folder, count in (("train", "Training_00", 100), ("test", "Val*", 46)):
        (prepared,) = splits(tmp_path, split)
        images = sorted(source.glob(f"{folder}/RGB/*.png"))
        assert len(prepared) == len(images) == count
        for index in range(0, count, 5):
            sample, path = prepared[index], images[index]
            assert sample["id"] == path.stem
            with Image.open(path) as image:
                np.testing.assert_array_equal(sample["image"], image)
            with Image.open(path.parent.parent / "GT" / path.name) as label:
                ids = np.where(sample["label"] == 255, 11, sample["label"])
                np.testing.assert_array_equal(COLOURS[ids], label)
