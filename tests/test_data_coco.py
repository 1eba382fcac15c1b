"""COCO: objects and segments become exactly these pixels, or are refused by name."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from coco_files import (
    HEIGHT,
    INSTANCES_TRAIN,
    LABELS,
    PANOPTIC_139,
    PERSON,
    RUNS,
    SOFA,
    WIDTH,
    archives_of,
    box,
    class_of,
    coco_files,
    image_of,
    json_of,
    label_of,
    metadata_of,
    object_of,
    opened,
    photo,
    png_of,
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


# The panoptic variant.


PANOPTIC = {
    "000000000139": label_of(
        (1, 1, 7, 6, SOFA), (2, 2, 4, 5, PERSON), (0, 7, 10, 8, 255)
    ),
    "000000000285": label_of((0, 0, 10, 8, 255)),
}


def test_segments_are_looked_up_to_the_pixel(panoptic):
    assert [*tfds.builder_from_directory(panoptic).info.splits] == ["val"]
    samples = opened(panoptic.parents[2], "val", "panoptic_2017")
    assert [*samples] == [*PANOPTIC]
    for image, label in PANOPTIC.items():
        np.testing.assert_array_equal(samples[image]["label"], label)


# What is not whole.


def _assert_refused(tmp_path, files, *parts, variant=""):
    """The message, which has these parts in this order."""
    source = unpack(tmp_path / "source", files)
    match = ".*".join(map(re.escape, parts))
    with pytest.raises(ValueError, match=f"(?s){match}") as caught:
        prepared(source, tmp_path / "data", variant)
    assert not [*(tmp_path / "data").glob("**/1.0.0")], "something stayed behind"
    return str(caught.value)


def test_images_that_are_listed_but_not_there_are_named(tmp_path):
    files = coco_files()
    for number in (139, 632):
        del files[f"val2017/{number:012}.jpg"]
    message = _assert_refused(
        tmp_path, files, "val: val2017/000000000139.jpg is missing"
    )
    assert "632" not in message, "this one has nothing of VOC's"
    folder = prepared(tmp_path / "source", tmp_path, partial=True)
    assert [*opened(tmp_path, "val")] == ["000000000285"]
    assert metadata_of(folder)["partial"] is True


def test_a_missing_png_of_segments_is_named(tmp_path):
    files = coco_files()
    del files["annotations/panoptic_val2017/000000000285.png"]
    match = "val: annotations/panoptic_val2017/000000000285.png is missing"
    _assert_refused(tmp_path, files, match, variant="panoptic_2017")


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_a_list_that_is_too_short_is_refused_unless_partial(kind, tmp_path):
    files = coco_files()
    file = f"annotations/{kind}_val2017.json"
    for part in ("images", "annotations"):
        kept = [e for e in files[file][part] if 724 not in (e["id"], e.get("image_id"))]
        files[file][part] = kept
    match = f"{file}: 3 images are listed, 4 published"
    _assert_refused(tmp_path, files, match, variant=f"{kind}_2017")
    folder = prepared(tmp_path / "source", tmp_path, f"{kind}_2017", partial=True)
    assert metadata_of(folder)["partial"] is True
    assert len(opened(tmp_path, "val", f"{kind}_2017")) == 2


def test_splits_without_images_and_archives_of_other_variants_do_not_matter(tmp_path):
    files = coco_files()
    del files["train2017/000000000009.jpg"]
    files["annotations/instances_train2017.json"] = b"{"
    source = unpack(tmp_path / "source", files)
    (source / "train2014.zip").write_bytes(b"broken")
    (source / "panoptic_annotations_trainval2017.zip").write_bytes(b"broken")
    folder = prepared(source, tmp_path)
    assert [*tfds.builder_from_directory(folder).info.splits] == ["val"]


# What is wrong in the files.


def _with(place, **changes):
    """Changes an entry: `place` is a list's name and an index."""

    def spoil(content):
        content[place[0]][place[1]].update(changes)

    return spoil


def _without(place, key):
    return lambda content: content[place[0]][place[1]].pop(key)


def _runs(counts):
    return {"size": [HEIGHT, WIDTH], "counts": counts}


FIRST, CROWD = ("annotations", 0), ("annotations", 5)
HUGE = 10**400


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda c: c.pop("images"), "'images' is None, but must be list"),
        (lambda c: c.pop("annotations"), "'annotations' is None"),
        (lambda c: c.pop("categories"), "'categories' is None"),
        (
            lambda c: c["annotations"].append(7),
            "'image_id' is None, but must be int, in 7",
        ),
        (lambda c: c["images"].append(7), "'id' is None, but must be int, in 7"),
        (_without(("images", 0), "file_name"), "'file_name' is None"),
        (_with(("images", 0), height="8"), "139.jpg: 'height' is '8', but must be int"),
        (_with(("images", 0), width=0), "139.jpg: width is 0"),
        (_with(("categories", 0), name="people"), "has no category for person"),
        (_without(FIRST, "image_id"), "'image_id' is None"),
        (_with(FIRST, image_id=140), "annotation 900: image 140 is not listed"),
        (_without(FIRST, "iscrowd"), "annotation 900: 'iscrowd' is None"),
        (_with(FIRST, category_id=12), "annotation 900: category 12 is not listed"),
        (_without(FIRST, "segmentation"), "None is neither polygons"),
        (_with(FIRST, segmentation=[]), "the segmentation has no polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4]]), "3.0, 4.0]) is not a polygon"),
        (_with(FIRST, segmentation=[box(1, 1, 2, 2)[1:]]), "is not a polygon"),
        (_with(FIRST, segmentation=[box(1, 1, 2, 200)]), "is not a polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4, 5, "6"]]), "'6'] is not a polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4, 5, HUGE]]), "is not a polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4, 5, np.nan]]), "is not a polygon"),
        (_with(FIRST, segmentation=[1, 2, 3, 4, 5, 6]), "900: 1 is not a polygon"),
        (
            _with(CROWD, segmentation={**RUNS, "size": [10, 8]}),
            "for [10, 8] pixels, not for [8, 10]",
        ),
        (
            _with(CROWD, segmentation=_runs([17, 21, 41])),
            "[17, 21, 41] do not add up to the 80 pixels",
        ),
        (
            _with(CROWD, segmentation=_runs([17, 21, 43])),
            "[17, 21, 43] do not add up to the 80 pixels",
        ),
        (_with(CROWD, segmentation=_runs([90, -10])), "[90, -10] do not add up"),
        (_with(CROWD, segmentation=_runs(None)), "None do not add up"),
        (_with(CROWD, segmentation=_runs("i0440W1")), "'i0440W1' do not add up"),
    ],
)
def test_wrong_instances_are_refused_by_name(spoil, match, tmp_path):
    files = coco_files()
    spoil(files["annotations/instances_val2017.json"])
    message = _assert_refused(tmp_path, files, match)
    assert message.startswith("annotations/instances_val2017.json: ")
    assert message.endswith("get the file as COCO publishes it")


@pytest.mark.parametrize(
    "content", [b'{"images": [', b"", b"\xff\xfe\x00", b"[" * 10**6, b"[]"]
)
def test_a_file_that_is_no_json_of_coco_is_assert_refused(content, tmp_path):
    files = coco_files() | {"annotations/instances_val2017.json": content}
    message = _assert_refused(tmp_path, files, "get the file as COCO publishes it")
    assert message.startswith("annotations/instances_val2017.json: ")


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("id", 0, "000000000139.png: segment id 0 is not in 1 … 16777215"),
        ("id", 1 << 24, "segment id 16777216 is not in"),
        ("id", 8, "such as (7, 0, 0); segments_info does not list"),
        ("category_id", 12, "000000000139.png: category 12 is not listed"),
        ("iscrowd", None, "000000000139.png: 'iscrowd' is None"),
    ],
)
def test_wrong_segments_are_refused_by_name(key, value, match, tmp_path):
    files = coco_files()
    content = files["annotations/panoptic_val2017.json"]
    content["annotations"][0]["segments_info"][0][key] = value
    _assert_refused(tmp_path, files, match, variant="panoptic_2017")


@pytest.mark.parametrize(
    "content, match",
    [
        (photo(grey=True), "139.png: is not an RGB image of ids; its mode is L"),
        (b"no image", "139.png: cannot be read as an image"),
        (png_of(PANOPTIC_139[:5]), "139.png: is 10x5, its image val2017/000000000139"),
    ],
)
def test_wrong_pngs_of_segments_are_refused_by_name(content, match, tmp_path):
    files = coco_files() | {"annotations/panoptic_val2017/000000000139.png": content}
    _assert_refused(tmp_path, files, match, variant="panoptic_2017")
