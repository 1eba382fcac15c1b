"""Preparing and reading data sets: what is made, left out, and refused."""

import dataclasses
import io
import pickle
import shutil
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from layouts import encoded, ids, photo, unpacked
from PIL import Image
from toys import SPEC, SPLITS, check, files, jpeg, left, opened
from toys import as_toys as as_toys  # fixtures for all that follows
from toys import home as home
from toys import source as source
from toys import variant_dir as variant_dir

from dilax.data.builders import builder as shards
from dilax.data.prepared import (
    NAMES,
    PreparedSplit,
    builder_class,
    default_data_dir,
    open_prepared,
    prepare,
    prepared_dir,
)

Usage = namedtuple("Usage", "total used free")


# Preparing.


def test_splits_are_read_as_they_were_listed(source, home):
    folder = prepare("toys", source, home)
    assert folder == home / "toys/first/1.0.0" == prepared_dir("toys", "", home)
    for split, names in SPLITS.items():
        samples = opened(home, split)
        assert len(samples) == len(names)
        check(samples, split)


def test_preparing_leaves_nothing_but_the_set(
    source, home, variant_dir, tmp_path, monkeypatch
):
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    prepare("toys", source, home)
    prepare("toys", source, home, variant="second")
    assert (left(home), left(temporary)) == (["toys"], [])
    assert left(home / "toys") == ["first", "second"]
    assert left(variant_dir) == left(home / "toys/second") == ["1.0.0"]
    assert left(variant_dir / "1.0.0") == [
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        "metadata.json",
        *(f"toys-{split}.array_record-00000-of-00001" for split in sorted(SPLITS)),
    ]


def test_what_is_prepared_stays_as_it_is_unless_overwritten(source, home):
    folder = prepare("toys", source, home)
    (source / "z.jpg").write_bytes(jpeg("a"))
    before = opened(home)[0]["image"]
    assert prepare("toys", source, home) == folder
    np.testing.assert_array_equal(opened(home)[0]["image"], before)
    assert prepare("toys", source, home, overwrite=True) == folder
    pixels = np.asarray(Image.open(io.BytesIO(jpeg("a"))))
    np.testing.assert_array_equal(opened(home)[0]["image"], pixels)
    assert left(folder.parent) == ["1.0.0"]


def test_a_split_of_which_there_is_nothing_is_left_out_with_a_warning(
    home, tmp_path, caplog
):
    source = unpacked(tmp_path / "source", files("train"))
    (source / "test.txt").write_bytes(b"k\nl\n")  # a list alone is nothing
    for _ in range(2):  # prepared, and found prepared
        caplog.clear()
        prepare("toys", source, home)
        warned = [
            r.getMessage() for r in caplog.records if "prepared" in r.getMessage()
        ]
        assert warned == [
            "not prepared: val (toys.zip: train, val)",
            "not prepared: test (secret.zip: test; with an account)",
        ]
    with pytest.raises(ValueError, match=r"no split 'val'; there are train$"):
        opened(home, "val")


def test_a_part_is_prepared_only_where_that_is_wanted(source, home):
    (source / "c.png").unlink()
    (source / "d.jpg").unlink()
    with pytest.raises(ValueError, match="Toys is incomplete") as refused:
        prepare("toys", source, home)
    assert str(refused.value).splitlines()[1:] == [
        "val: d.jpg is missing",
        "val: c.png is missing",
        "Get the missing files, or give --partial to prepare the others.",
    ]
    prepare("toys", source, home, partial=True)
    assert [sample["id"] for sample in opened(home, "val")] == ["b", "a"]
    assert prepare("toys", source, home, partial=True).is_dir()
    with pytest.raises(ValueError, match="only part of it is prepared; --partial"):
        prepare("toys", source, home)
    unpacked(source, files("val"))
    prepare("toys", source, home, overwrite=True)
    check(opened(home, "val"), "val")
    prepare("toys", source, home)


def test_lists_of_another_length_than_published_are_refused(source, home):
    (source / "val.txt").write_bytes(b"a\nb\n")
    with pytest.raises(ValueError, match="val: 2 images are listed, 4 published"):
        prepare("toys", source, home)


def test_a_hundred_missing_files_are_named_and_the_rest_counted(home, tmp_path):
    names = [f"{i}" for i in range(61)]
    source = unpacked(
        tmp_path / "source",
        {"train.txt": "\n".join(names).encode(), "0.jpg": jpeg("y"), "0.png": b""},
    )
    with pytest.raises(ValueError, match="Toys is incomplete") as refused:
        prepare("toys", source, home)
    lines = str(refused.value).splitlines()
    assert lines[1:3] == ["train: 1.jpg is missing", "train: 1.png is missing"]
    assert lines[101] == "… and 21 more"  # with the number of images


@pytest.mark.parametrize("name", NAMES)
def test_another_folder_is_refused_with_what_is_wanted(
    name, home, tmp_path, monkeypatch
):
    monkeypatch.undo()
    source = unpacked(tmp_path / "source", {"a.png": encoded(photo(0))})
    builder = builder_class(name)
    for variant in builder.BUILDER_CONFIGS:
        with pytest.raises(
            ValueError, match=f"contains no {builder.SPEC.name}"
        ) as refused:
            prepare(name, source, home, variant=variant.name, partial=True)
        assert builder.HOW in str(refused.value)


@pytest.mark.parametrize(
    "name, content, wrong",
    [
        ("y.png", encoded(ids(0, [0], 5, 8)), r"y\.png: is 8x5, its image y\.jpg 8x6"),
        ("y.png", encoded(ids(0, [0, 1, 2, 7, 200])), r"y\.png: .*ids \[1, 2, 200"),
        (
            "y.png",
            encoded(photo(0)),
            r"y\.png: is not an image of label ids; its mode is RGB",
        ),
        ("y.png", b"", r"y\.png: cannot be read as an image"),
        ("y.jpg", jpeg("y")[:300], r"y\.jpg: cannot be read as an image"),
        ("y.jpg", b"<html>", r"y\.jpg: cannot be read as an image"),
    ],
)
def test_a_file_that_is_wrong_is_named_and_nothing_stays(
    name, content, wrong, source, home, variant_dir
):
    (source / name).write_bytes(content)
    for partial in (False, True):
        with pytest.raises(ValueError, match=wrong):
            prepare("toys", source, home, partial=partial)
    assert left(variant_dir) == []


@pytest.mark.parametrize(
    "damage", ["info", "no info", "empty", "features", "metadata", "shard"]
)
def test_a_set_that_is_damaged_is_refused_and_can_be_made_again(damage, source, home):
    folder = prepare("toys", source, home)
    (shard,) = folder.glob("toys-train*")
    info = folder / "dataset_info.json"
    if damage == "info":
        info.write_bytes(info.read_bytes()[:200])
    elif damage == "no info":
        info.unlink()
    elif damage == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "features":
        (folder / "features.json").write_text("[]")
    elif damage == "metadata":
        (folder / "metadata.json").write_text('{"par')
    else:
        shard.unlink()
    with pytest.raises(ValueError, match=r"1\.0\.0.*: .* again, with --overwrite"):
        opened(home)[0]
    if damage != "shard":  # which is not looked for unless it is read
        with pytest.raises(ValueError, match="is not a prepared data set"):
            prepare("toys", source, home)
    prepare("toys", source, home, overwrite=True)
    check(opened(home), "train")


def test_unknown_data_sets_are_refused():
    with pytest.raises(ValueError, match=r"'imagenet': must be one of .*voc"):
        builder_class("imagenet")
    assert {builder_class(name).SPEC.name for name in NAMES} >= {"Pascal VOC 2012"}


def test_the_tilde_is_ones_home(monkeypatch, tmp_path, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare("toys", source, Path("~/sets")).is_relative_to(tmp_path / "sets")
    check(opened("~/sets"), "train")


# Reading.


def test_indices_are_those_of_a_sequence(source, home):
    prepare("toys", source, home)
    samples = opened(home)
    assert samples[-1]["id"] == samples[np.int64(7)]["id"] == "s"
    for index in (8, -9):
        with pytest.raises(IndexError):
            samples[index]


def test_tfds_reads_what_is_prepared(source, home):
    info = tfds.builder_from_directory(prepare("toys", source, home)).info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        name: len(ids) for name, ids in SPLITS.items()
    }
    assert info.features["label"].names == list(SPEC.classes)


def test_large_splits_have_several_shards_in_order(source, home, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1500)
    folder = prepare("toys", source, home)
    found = sorted(path.name for path in folder.glob("toys-train*"))
    assert len(found) > 2
    count = f"of-{len(found):05}"
    assert found == [
        f"toys-train.array_record-{i:05}-{count}" for i in range(len(found))
    ]
    check(opened(home), "train")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_shard_that_is_cut_is_named(keep, source, home):
    folder = prepare("toys", source, home)
    (shard,) = folder.glob("toys-train*")
    shard.write_bytes(shard.read_bytes()[: int(keep * shard.stat().st_size)])
    with pytest.raises(ValueError, match=r"1\.0\.0.*: .* again, with --overwrite"):
        list(opened(home))


def test_a_record_with_a_wrong_byte_is_named_and_the_others_are_read(source, home):
    folder = prepare("toys", source, home)
    (shard,) = folder.glob("toys-train*")
    content = shard.read_bytes()
    assert jpeg("y") in content  # stored as it is
    shard.write_bytes(content.replace(jpeg("y"), jpeg("y")[:-30] + b"\0" * 30))
    samples = opened(home)
    assert [samples[i]["id"] for i in (0, 2)] == ["z", "x"]
    with pytest.raises(ValueError, match=r"train: record 1 cannot be read .*overwrite"):
        samples[1]


@pytest.mark.parametrize("key", ["image", "label"])
def test_an_image_that_is_damaged_within_the_set_is_named(key):
    record = {"image": jpeg("y"), "label": encoded(ids(0, [0])), "id": b"y"}
    samples = PreparedSplit([{**record, key: record[key][:-30]}], SPEC, "here")
    with pytest.raises(ValueError, match="here: y: cannot be read as an image"):
        samples[0]


def test_label_ids_that_another_spec_does_not_have_are_named(source, home):
    prepare("toys", source, home)
    other = dataclasses.replace(SPEC, label_map=((0, 0), (3, 1)))
    with pytest.raises(ValueError, match=r"train: z: .*ids \[7, 9\] are not among"):
        opened(home, spec=other)[0]


def test_what_is_missing_is_refused_with_what_there_is(source, home):
    with pytest.raises(
        ValueError, match=r"Toys is not prepared there .*--data_dir=.*ho"
    ):
        opened(home)
    prepare("toys", source, home)
    with pytest.raises(ValueError, match="no split 'dev'; there are train, val, test"):
        opened(home, "dev")
    with pytest.raises(ValueError, match="'third': toys has first, second"):
        opened(home, variant="third")
    with pytest.raises(ValueError, match="'third': toys has first, second"):
        prepare("toys", source, home, variant="third")


def test_the_default_folder_is_that_of_tfds(monkeypatch, tmp_path, source):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    assert default_data_dir() == tmp_path / "sets"
    prepare("toys", source, default_data_dir())
    check(open_prepared("toys", SPEC, "", "val"), "val")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir() == Path.home() / "tensorflow_datasets"


def test_splits_travel_to_other_processes(source, home):
    prepare("toys", source, home)
    samples = opened(home)
    samples[0]
    travelled = pickle.loads(pickle.dumps(samples))
    check(travelled, "train")
    assert len(pickle.dumps(samples)) < 20_000


def test_eight_threads_read_the_same_samples(source, home, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1500)
    prepare("toys", source, home)
    samples = opened(home)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(samples.__getitem__, [*range(8)] * 40))
    for start in range(0, 320, 8):
        check(read[start : start + 8], "train")
