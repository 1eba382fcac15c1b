"""COCO: what is not whole or not right is refused by name."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from coco_files import (
    HEIGHT,
    PANOPTIC_139,
    RUNS,
    WIDTH,
    box,
    coco_files,
    metadata_of,
    opened,
    photo,
    png_of,
    prepared,
    unpack,
)
from coco_files import few_images as few_images  # a fixture for all that follows

# What is not whole.


def _refused(tmp_path, files, *parts, variant=""):
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
    message = _refused(tmp_path, files, "val: val2017/000000000139.jpg is missing")
    assert "632" not in message, "this one has nothing of VOC's"
    folder = prepared(tmp_path / "source", tmp_path, partial=True)
    assert [*opened(tmp_path, "val")] == ["000000000285"]
    assert metadata_of(folder)["partial"] is True


def test_a_missing_png_of_segments_is_named(tmp_path):
    files = coco_files()
    del files["annotations/panoptic_val2017/000000000285.png"]
    match = "val: annotations/panoptic_val2017/000000000285.png is missing"
    _refused(tmp_path, files, match, variant="panoptic_2017")


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_a_list_that_is_too_short_is_refused_unless_partial(kind, tmp_path):
    files = coco_files()
    file = f"annotations/{kind}_val2017.json"
    for part in ("images", "annotations"):
        kept = [e for e in files[file][part] if 724 not in (e["id"], e.get("image_id"))]
        files[file][part] = kept
    match = f"{file}: 3 images are listed, 4 published"
    _refused(tmp_path, files, match, variant=f"{kind}_2017")
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


def test_what_is_no_coco_is_refused_with_what_to_give(tmp_path):
    _refused(tmp_path, {"a.txt": b"a"}, "holds no COCO", "--from names a folder")


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
        (lambda c: c.pop("images"), "'images' is None where list is expected"),
        (lambda c: c.pop("annotations"), "'annotations' is None"),
        (lambda c: c.pop("categories"), "'categories' is None"),
        (
            lambda c: c["annotations"].append(7),
            "'image_id' is None where int is expected, in 7",
        ),
        (lambda c: c["images"].append(7), "'id' is None where int is expected, in 7"),
        (_without(("images", 0), "file_name"), "'file_name' is None"),
        (_with(("images", 0), height="8"), "139.jpg: 'height' is '8' where int"),
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
    message = _refused(tmp_path, files, match)
    assert message.startswith("annotations/instances_val2017.json: ")
    assert message.endswith("get the file as COCO publishes it")


@pytest.mark.parametrize(
    "content", [b'{"images": [', b"", b"\xff\xfe\x00", b"[" * 10**6, b"[]"]
)
def test_a_file_that_is_no_json_of_coco_is_refused(content, tmp_path):
    files = coco_files() | {"annotations/instances_val2017.json": content}
    message = _refused(tmp_path, files, "get the file as COCO publishes it")
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
    _refused(tmp_path, files, match, variant="panoptic_2017")


@pytest.mark.parametrize(
    "content, match",
    [
        (photo(grey=True), "139.png: is not an RGB image of ids but of L"),
        (b"no image", "139.png: cannot be read as an image"),
        (png_of(PANOPTIC_139[:5]), "139.png: is 10x5, its image val2017/000000000139"),
    ],
)
def test_wrong_pngs_of_segments_are_refused_by_name(content, match, tmp_path):
    files = coco_files() | {"annotations/panoptic_val2017/000000000139.png": content}
    _refused(tmp_path, files, match, variant="panoptic_2017")
