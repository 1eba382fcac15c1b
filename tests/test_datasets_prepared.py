"""Preparing data sets: whole, interrupted, twice at once, without space; reading them."""

import dataclasses
import errno
import fcntl
import functools
import http.server
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from layouts import encoded, ids, photo, unpacked, zipped
from PIL import Image

from dilax.datasets import DatasetSpec, prepared, shards
from dilax.datasets.archives import Archive
from dilax.datasets.builder import Item, SegmentationBuilder, Variant
from dilax.datasets.inventory import take_inventory
from dilax.datasets.prepared import (
    NAMES,
    builder_class,
    default_data_dir,
    open_prepared,
    prepare,
    prepared_dir,
)

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
Usage = namedtuple("Usage", "total used free")


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
        Variant(name=name, description=name, splits=COUNTS)
        for name in ("first", "second")
    ]

    def archives(self):
        return [
            a
            for a in self.ARCHIVES
            if self.variant.name == "second" or a.name != "more.zip"
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


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """The builder above, under any name."""
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


def test_splits_are_read_as_they_were_listed(source, home):
    folder = prepare("toys", source, home)
    assert folder == home / "toys/first/1.0.0" == prepared_dir("toys", "", home)
    for split, names in SPLITS.items():
        samples = opened(home, split)
        assert len(samples) == len(names)
        check(samples, split)


def test_indices_are_those_of_a_sequence(source, home):
    prepare("toys", source, home)
    samples = opened(home)
    assert samples[-1]["id"] == samples[np.int64(7)]["id"] == "s"
    for index in (8, -9):
        with pytest.raises(IndexError):
            samples[index]


def test_preparing_leaves_nothing_but_the_set(source, home, variant_dir):
    prepare("toys", source, home)
    prepare("toys", source, home, variant="second")
    assert left(home) == ["toys"]
    assert left(home / "toys") == ["first", "second"]
    assert left(variant_dir) == left(home / "toys/second") == ["1.0.0"]
    assert left(variant_dir / "1.0.0") == [
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        "metadata.json",
        *(f"toys-{split}.array_record-00000-of-00001" for split in sorted(SPLITS)),
    ]


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


def test_a_split_of_which_there_is_nothing_is_left_out_and_told(home, tmp_path, caplog):
    source = unpacked(tmp_path / "source", files("train"))
    (source / "test.txt").write_bytes(b"k\nl\n")  # a list alone is nothing
    for _ in range(2):  # prepared, and found prepared
        caplog.clear()
        prepare("toys", source, home)
        told = [r.getMessage() for r in caplog.records if "prepared" in r.getMessage()]
        assert told == [
            "not prepared: val (toys.zip: train, val)",
            "not prepared: test (secret.zip: test; with an account)",
        ]
    with pytest.raises(ValueError, match="no split 'val'; there are train$"):
        opened(home, "val")


def test_a_part_is_prepared_only_where_that_is_wanted(source, home):
    (source / "c.png").unlink()
    (source / "d.jpg").unlink()
    with pytest.raises(ValueError, match="not all of Toys is there") as told:
        prepare("toys", source, home)
    assert str(told.value).splitlines()[1:] == [
        "val: d.jpg is missing",
        "val: c.png is missing",
        "Get what is missing, or give --partial to prepare what is there.",
    ]
    prepare("toys", source, home, partial=True)
    assert [sample["id"] for sample in opened(home, "val")] == ["b", "a"]
    assert prepare("toys", source, home, partial=True).is_dir()
    with pytest.raises(ValueError, match="only in part; --partial takes it as it is"):
        prepare("toys", source, home)
    unpacked(source, files("val"))
    prepare("toys", source, home, overwrite=True)
    check(opened(home, "val"), "val")
    prepare("toys", source, home)


def test_a_whole_set_is_no_part_whatever_was_allowed(source, home):
    prepare("toys", source, home, partial=True)
    prepare("toys", source, home)


def test_lists_of_another_length_than_published_are_told(source, home):
    (source / "val.txt").write_bytes(b"a\nb\n")
    with pytest.raises(ValueError, match="val: 2 images are listed, 4 published"):
        prepare("toys", source, home)


def test_a_hundred_missing_files_are_named_and_the_rest_counted():
    items = [Item(f"{i}", f"{i}.jpg", f"{i}.png") for i in range(61)]
    there = {"0.jpg", "0.png"}
    found = take_inventory(there, {"train": items}, {"train": 61})
    assert found.whole == {"train": items[:1]}
    lines = found.listing().splitlines()
    assert lines[1:3] == ["train: 1.jpg is missing", "train: 1.png is missing"]
    assert lines[101:] == ["… and 20 more"]


def test_a_folder_of_something_else_is_told(home, tmp_path):
    source = unpacked(tmp_path / "source", {"readme": b""})
    with pytest.raises(ValueError, match="holds no Toys. Look under the bed"):
        prepare("toys", source, home)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("y.png", encoded(ids(0, [0], 5, 8)), r"y\.png: is 8x5, its image y\.jpg 8x6"),
        ("y.png", encoded(ids(0, [0, 1, 2, 7, 200])), r"y\.png: label ids \[1, 2, 200"),
        (
            "y.png",
            encoded(photo(0)),
            r"y\.png: is not an image of label ids but of RGB",
        ),
        ("y.png", b"", r"y\.png: cannot be read as an image"),
        ("y.jpg", jpeg("y")[:300], r"y\.jpg: cannot be read as an image"),
        ("y.jpg", b"<html>", r"y\.jpg: cannot be read as an image"),
    ],
)
def test_a_file_that_is_wrong_is_named_and_nothing_stays(
    name, content, told, source, home, variant_dir
):
    (source / name).write_bytes(content)
    for partial in (False, True):
        with pytest.raises(ValueError, match=told):
            prepare("toys", source, home, partial=partial)
    assert left(variant_dir) == []


def test_an_interrupt_leaves_nothing(source, home, variant_dir, monkeypatch):
    def interrupting(self, tree, item):
        if item.id == "b":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)
        return SegmentationBuilder.label(self, tree, item)

    with monkeypatch.context() as patch:
        patch.setattr(Toys, "label", interrupting, raising=False)
        with pytest.raises(KeyboardInterrupt):
            prepare("toys", source, home)
    assert left(variant_dir) == []
    prepare("toys", source, home)
    check(opened(home, "val"), "val")


def test_an_interrupt_while_shards_are_written_keeps_what_there_was(
    source, home, variant_dir, monkeypatch
):
    class Interrupted(shards.ArrayRecordWriter):
        def close(self):
            raise KeyboardInterrupt

    prepare("toys", source, home)
    monkeypatch.setattr(shards, "ArrayRecordWriter", Interrupted)
    for variant in ("first", "second"):
        with pytest.raises(KeyboardInterrupt):
            prepare("toys", source, home, variant=variant, overwrite=True)
    assert left(variant_dir) == ["1.0.0"]
    assert left(home / "toys/second") == []
    check(opened(home), "train")


def test_a_kill_between_two_renames_loses_nothing(source, home, variant_dir):
    folder = prepare("toys", source, home)
    folder.rename(variant_dir / "incomplete.replaced")
    (variant_dir / "incomplete.staging").mkdir()
    prepare("toys", source, home)
    assert left(variant_dir) == ["1.0.0"]
    check(opened(home), "train")


CHILD = """
import sys, time
from pathlib import Path
import test_datasets_prepared as tests
from dilax.datasets import prepared

def hang(self, tree, item):
    if item.id == "b":
        print("hanging", flush=True)
        time.sleep(600)
    return tests.SegmentationBuilder.label(self, tree, item)

tests.Toys.label = hang
prepared.builder_class = lambda name: tests.Toys
prepared.prepare("toys", Path(sys.argv[1]), Path(sys.argv[2]))
"""


def child(code, *arguments, stdout=None):
    """Another Python, which finds these tests."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_another_process_is_not_disturbed_and_if_killed_tidied_up(
    source, home, variant_dir, caplog
):
    with child(CHILD, source, home) as process:
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
    assert "Removed what an interrupted preparation left" in caplog.text
    assert left(variant_dir) == ["1.0.0"]
    check(opened(home, "val"), "val")


WITHOUT_TENSORFLOW = """
import sys
from pathlib import Path
import test_datasets_prepared as tests
from dilax.datasets import prepared
import dilax.datasets.voc

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            print("asked for", name)

sys.meta_path.insert(0, Refused())
prepared.builder_class = lambda name: tests.Toys
home = Path(sys.argv[2])
prepared.prepare("toys", Path(sys.argv[1]), home)
samples = prepared.open_prepared("toys", tests.SPEC, str(home), "val")
print([sample["id"] for sample in samples], "tensorflow" in sys.modules)
"""


def test_neither_preparing_nor_reading_imports_tensorflow(source, home):
    with child(WITHOUT_TENSORFLOW, source, home) as process:
        assert process.stdout.read() == "['d', 'c', 'b', 'a'] False\n"


def test_a_lock_that_is_held_is_respected(source, home, variant_dir):
    prepare("toys", source, home)
    with (variant_dir / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is preparing it; wait"):
            prepare("toys", source, home)
        prepare("toys", source, home, variant="second")
    prepare("toys", source, home)


def test_too_little_space_is_told_at_once(source, home, variant_dir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 1000))
    with pytest.raises(OSError, match=r"home.*disk is full.*needs about") as told:
        prepare("toys", source, home)
    assert told.value.errno == errno.ENOSPC
    assert left(variant_dir) == []


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_disk_that_fills_up_is_told(source, home, variant_dir, monkeypatch, method):
    class Full(shards.ArrayRecordWriter):
        pass

    def fail(self, *args):
        raise RuntimeError("write() failed: No space left on device; writing x")

    setattr(Full, method, fail)
    monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
    with pytest.raises(
        OSError, match=r"home.*disk is full.*another --data_dir"
    ) as told:
        prepare("toys", source, home)
    assert told.value.errno == errno.ENOSPC
    assert left(variant_dir) == []


def test_a_data_dir_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file/home.* cannot be written .*--data_dir"):
        prepare("toys", source, tmp_path / "file/home")


@pytest.mark.parametrize("damage", ["info", "no info", "empty", "features", "shard"])
def test_a_set_that_is_damaged_is_told_and_made_anew(damage, source, home):
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
    else:
        shard.unlink()
    with pytest.raises(ValueError, match=r"1\.0\.0.*: .* again, with --overwrite"):
        opened(home)[0]
    if damage != "shard":  # which is not looked for unless it is read
        with pytest.raises(ValueError, match="is not a prepared data set"):
            prepare("toys", source, home)
    prepare("toys", source, home, overwrite=True)
    check(opened(home), "train")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_shard_that_is_cut_is_named(keep, source, home):
    folder = prepare("toys", source, home)
    (shard,) = folder.glob("toys-train*")
    shard.write_bytes(shard.read_bytes()[: int(keep * shard.stat().st_size)])
    with pytest.raises(ValueError, match=r"1\.0\.0.*: .* again, with --overwrite"):
        [sample for sample in opened(home)]


def test_an_image_that_is_damaged_within_the_set_is_named(source, home):
    folder = prepare("toys", source, home)
    (shard,) = folder.glob("toys-train*")
    content = shard.read_bytes()
    assert jpeg("y") in content  # stored as it is
    shard.write_bytes(content.replace(jpeg("y"), jpeg("y")[:-300] + b"\0" * 300))
    samples = opened(home)
    assert samples[0]["id"] == "z"
    with pytest.raises(ValueError, match="y: cannot be read|record 1 cannot be read"):
        samples[1]


def test_label_ids_that_another_spec_does_not_have_are_named(source, home):
    prepare("toys", source, home)
    other = dataclasses.replace(SPEC, label_map=((0, 0), (3, 1)))
    with pytest.raises(ValueError, match=r"train: z has label ids \[7, 9\], none of"):
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


def test_data_sets_that_there_are_not_are_told():
    with pytest.raises(
        ValueError, match="'imagenet': is no data set to prepare; .*voc"
    ):
        builder_class("imagenet")
    assert {builder_class(name).SPEC.name for name in NAMES} >= {"Pascal VOC 2012"}


def test_the_default_folder_is_that_of_tfds(monkeypatch, tmp_path, source):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    assert default_data_dir() == tmp_path / "sets"
    prepare("toys", source, default_data_dir())
    check(open_prepared("toys", SPEC, "", "val"), "val")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir() == Path.home() / "tensorflow_datasets"


def test_the_tilde_is_ones_home(monkeypatch, tmp_path, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare("toys", source, Path("~/sets")).is_relative_to(tmp_path / "sets")
    check(opened("~/sets"), "train")


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
    with pytest.raises(ValueError, match=r"toys\.zip: the server answers 404"):
        prepare("toys", None, home)
    assert left(variant_dir) == []


def test_where_nothing_can_be_downloaded_the_way_is_told(home):
    with pytest.raises(ValueError, match="without an account. Look under the bed"):
        prepare("toys", None, home)
    assert left(home) == ["toys"]


@pytest.mark.parametrize("name", ["kitti", "cityscapes"])
def test_kitti_and_cityscapes_cannot_be_downloaded(name, home, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot be downloaded") as told:
        prepare(name, None, home)
    assert builder_class(name).HOW in str(told.value)
