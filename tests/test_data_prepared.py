"""Preparing data sets: what is made, what is left out, and what is refused."""

import functools
import http.server
import io
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from layouts import encoded, ids, photo, unpacked, zipped
from PIL import Image
from toys import SPLITS, Toys, check, files, jpeg, left, opened
from toys import as_toys as as_toys  # fixtures for all that follows
from toys import home as home
from toys import source as source
from toys import variant_dir as variant_dir

from dilax.data.prepared import NAMES, builder_class, prepare, prepared_dir


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
    with pytest.raises(ValueError, match=r"no split 'val'; there are train$"):
        opened(home, "val")


def test_a_part_is_prepared_only_where_that_is_wanted(source, home):
    (source / "c.png").unlink()
    (source / "d.jpg").unlink()
    with pytest.raises(ValueError, match="Toys is incomplete") as told:
        prepare("toys", source, home)
    assert str(told.value).splitlines()[1:] == [
        "val: d.jpg is missing",
        "val: c.png is missing",
        "Get what is missing, or give --partial to prepare what is there.",
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


def test_a_whole_set_is_no_part_whatever_was_allowed(source, home):
    prepare("toys", source, home, partial=True)
    prepare("toys", source, home)


def test_lists_of_another_length_than_published_are_told(source, home):
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


def test_a_folder_of_something_else_is_told(home, tmp_path):
    source = unpacked(tmp_path / "source", {"readme": b""})
    with pytest.raises(ValueError, match=r"holds no Toys\. Look under the bed"):
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


@pytest.mark.parametrize(
    "damage", ["info", "no info", "empty", "features", "metadata", "shard"]
)
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


def test_data_sets_that_there_are_not_are_told():
    with pytest.raises(
        ValueError, match=r"'imagenet': is not a data set to prepare; .*voc"
    ):
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


def test_a_publisher_who_changed_the_file_is_believed_only_if_told_so(
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


def test_where_nothing_can_be_downloaded_the_way_is_told(home):
    with pytest.raises(ValueError, match=r"without an account\. Look under the bed"):
        prepare("toys", None, home)
    assert left(home) == ["toys"]


@pytest.mark.parametrize("name", ["kitti", "cityscapes"])
def test_kitti_and_cityscapes_cannot_be_downloaded(name, home, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot be downloaded") as told:
        prepare(name, None, home)
    assert builder_class(name).HOW in str(told.value)
