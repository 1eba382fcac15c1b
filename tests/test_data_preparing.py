"""Preparing data sets: downloads, interrupts, full disks, and two processes at once."""

import errno
import functools
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple

import pytest
import toys
from layouts import unpacked, zipped
from toys import Toys, check, files, left, opened
from toys import as_toys as as_toys  # fixtures for all that follows
from toys import home as home
from toys import source as source
from toys import variant_dir as variant_dir

from dilax.data.builders import builder as shards
from dilax.data.builders.builder import SegmentationBuilder
from dilax.data.prepared import builder_class, prepare
from dilax.runtime import download
from dilax.runtime.files import alone

Usage = namedtuple("Usage", "total used free")


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


def test_without_a_connection_the_error_says_what_to_get(home, monkeypatch):
    nobody = "http://127.0.0.1:9/toys.zip"
    monkeypatch.setattr(Toys, "ARCHIVES", (Toys.ARCHIVES[0]._replace(url=nobody),))
    monkeypatch.setattr(download, "PAUSES", ())
    with pytest.raises(OSError, match="cannot be reached") as refused:
        prepare("toys", None, home)
    assert Toys.HOW in str(refused.value)


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
