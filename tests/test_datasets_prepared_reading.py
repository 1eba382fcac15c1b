"""Reading prepared data sets, and what is wrong with them."""

import dataclasses
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from layouts import encoded, ids
from toys import SPEC, SPLITS, check, jpeg, opened
from toys import as_toys as as_toys  # fixtures for all that follows
from toys import home as home
from toys import source as source

from dilax.data.builders import builder as shards
from dilax.data.prepared import PreparedSplit, default_data_dir, open_prepared, prepare


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
    with pytest.raises(ValueError, match=r"train: z: label ids \[7, 9\] are not among"):
        opened(home, spec=other)[0]


def test_what_there_is_not_is_told_with_what_there_is(source, home):
    with pytest.raises(
        ValueError, match=r"Toys is not prepared there .*--data_dir=.*ho"
    ):
        opened(home)
    prepare("toys", source, home)
    with pytest.raises(ValueError, match="no split 'dev'; there are train, val, test"):
        opened(home, "dev")
    for call in (
        functools.partial(opened, home),
        functools.partial(prepared_variant, home),
    ):
        with pytest.raises(ValueError, match="'third': toys has first, second"):
            call(variant="third")


def prepared_variant(home, variant):
    return prepare("toys", home, home, variant=variant)


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
