"""Preparing and reading data sets: what is made, left out, refused and interrupted."""

import dataclasses
import errno
import functools
import http.server
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import toys
from layouts import encoded, ids, photo, unpacked, zipped
from PIL import Image
from toys import SPEC, SPLITS, Toys, check, files, jpeg, left, opened
from toys import as_toys as as_toys  # fixtures for all that follows
from toys import home as home
from toys import source as source
from toys import variant_dir as variant_dir

from dilax.data.builders import builder as shards
from dilax.data.builders.builder import SegmentationBuilder
from dilax.data.prepared import (
    NAMES,
    PreparedSplit,
    builder_class,
    default_data_dir,
    open_prepared,
    prepare,
    prepared_dir,
)
from dilax.runtime.files import alone

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


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A server with the two archives that need no account."""
    folder = tmp_path / "published"
    zipped(folder / "toys.zip", files("train", "val"))
    zipped(folder / "more.zip", {"more.txt": b""})
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        at = f"http://127.0.0.1:{server.server_port}/"
        given = [a._replace(url=at + a.name) for a in Toys.ARCHIVES[:2]]
        monkeypatch.setattr(Toys, "ARCHIVES", (*given, Toys.ARCHIVES[2]))
        yield folder
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_without_a_source_what_the_variant_needs_is_downloaded(publisher, home, caplog):
    prepare("toys", None, home)
    downloads = home / "downloads/toys"
    assert [p.name for p in downloads.iterdir() if p.suffix == ".zip"] == ["toys.zip"]
    assert "secret.zip cannot be downloaded: test; with an account" in caplog.text
    assert "not prepared: test (secret.zip: test; with an account)" in caplog.text
    check(opened(home, "val"), "val")
    prepare("toys", None, home, variant="second")
    assert (downloads / "more.zip").exists()
    check(opened(home, "train", "second"), "train")


def test_what_was_put_among_the_downloads_is_taken(publisher, home, caplog):
    zipped(home / "downloads/toys/secret.zip", files("test"))
    prepare("toys", None, home)
    check(opened(home, "test"), "test")
    assert "secret" not in caplog.text


def test_a_set_that_is_prepared_is_not_downloaded_again(publisher, home):
    prepare("toys", None, home)
    shutil.rmtree(home / "downloads")
    prepare("toys", None, home)
    assert left(home) == ["toys"]


def test_a_download_that_fails_leaves_nothing_prepared(publisher, home, variant_dir):
    (publisher / "toys.zip").unlink()
    with pytest.raises(OSError, match=r"toys\.zip: the server answers 404"):
        prepare("toys", None, home)
    assert left(variant_dir) == []


def test_a_publisher_who_changed_the_file_is_believed_only_with_unverified(
    publisher, home, monkeypatch
):
    wrong = Toys.ARCHIVES[0]._replace(digest="0" * 32)
    monkeypatch.setattr(Toys, "ARCHIVES", (wrong, *Toys.ARCHIVES[1:]))
    with pytest.raises(
        ValueError, match=r"toys\.zip: .* does not match .*--unverified"
    ):
        prepare("toys", None, home)
    prepare("toys", None, home, verify=False)
    check(opened(home, "val"), "val")


@pytest.mark.parametrize("name", ["kitti", "cityscapes"])
def test_kitti_and_cityscapes_cannot_be_downloaded(name, home, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot be downloaded") as refused:
        prepare(name, None, home)
    assert builder_class(name).HOW in str(refused.value)
    assert not list(home.rglob("*.*.*"))


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


# Interrupts, full disks, and two processes at once.


def test_an_interrupt_leaves_nothing_but_what_was_there(
    source, home, variant_dir, monkeypatch
):
    def interrupting(self, tree, item):
        if item.id == "b":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)
        return SegmentationBuilder.label(self, tree, item)

    # A shell's background jobs begin with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for there in ([], ["1.0.0"]):
        with monkeypatch.context() as patch:
            patch.setattr(Toys, "label", interrupting, raising=False)
            with pytest.raises(KeyboardInterrupt):
                prepare("toys", source, home, overwrite=True)
        assert left(variant_dir) == there
        prepare("toys", source, home)
        check(opened(home, "val"), "val")
    signal.signal(signal.SIGINT, before)


def test_a_kill_between_two_renames_loses_nothing(source, home, variant_dir):
    folder = prepare("toys", source, home)
    folder.rename(variant_dir / "incomplete.replaced")
    (variant_dir / "incomplete.staging").mkdir()
    prepare("toys", source, home)
    assert left(variant_dir) == ["1.0.0"]
    check(opened(home), "train")


def child(mode, source, home):
    """Another process that prepares the same set; see `toys.main`."""
    path = os.pathsep.join([str(source), *sys.path])
    return subprocess.Popen(
        [sys.executable, toys.__file__, mode, source, home],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_another_process_is_not_disturbed_and_if_killed_tidied_up(
    source, home, variant_dir, caplog
):
    with child("hang", source, home) as process:
        try:
            assert process.stdout.readline() == "hanging\n"
            with pytest.raises(ValueError, match="another process is preparing it"):
                prepare("toys", source, home)
        finally:
            process.kill()
    assert left(variant_dir) == ["incomplete.staging"]
    with pytest.raises(ValueError, match="not prepared there"):
        opened(home)
    prepare("toys", source, home)
    assert "interrupted preparation" in caplog.text
    assert left(variant_dir) == ["1.0.0"]
    check(opened(home, "val"), "val")


def test_neither_preparing_nor_reading_imports_tensorflow(source, home):
    unpacked(source, {"tensorflow/__init__.py": b""})  # as if it were installed
    with child("read", source, home) as process:
        assert process.stdout.read() == "d c b a False\n"


def test_a_lock_that_is_held_is_respected(source, home, variant_dir):
    prepare("toys", source, home)
    with alone(variant_dir / ".lock", ""):
        with pytest.raises(ValueError, match="another process is preparing it; wait"):
            prepare("toys", source, home)
        prepare("toys", source, home, variant="second")
    prepare("toys", source, home)


def test_too_little_space_is_reported_at_once(source, home, variant_dir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 1000))
    with pytest.raises(OSError, match=r"home.*disk is full.*needs about") as refused:
        prepare("toys", source, home)
    assert refused.value.errno == errno.ENOSPC
    assert left(variant_dir) == []


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_disk_that_fills_up_is_reported(
    source, home, variant_dir, monkeypatch, method
):
    class Full(shards.ArrayRecordWriter):
        pass

    def fail(self, *args):
        raise RuntimeError("write() failed: No space left on device; writing x")

    setattr(Full, method, fail)
    monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
    with pytest.raises(
        OSError, match=r"home.*disk is full.*another --data_dir"
    ) as refused:
        prepare("toys", source, home)
    assert refused.value.errno == errno.ENOSPC
    assert left(variant_dir) == []


def test_a_data_dir_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file/home"):
        prepare("toys", source, tmp_path / "file/home")
