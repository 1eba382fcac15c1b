"""Preparing with interrupts, without space, and twice at once."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple

import pytest
import toys
from layouts import unpacked
from toys import Toys, check, left, opened
from toys import as_toys as as_toys  # fixtures for all that follows
from toys import home as home
from toys import source as source
from toys import variant_dir as variant_dir

from dilax.data.builders import builder as shards
from dilax.data.builders.builder import SegmentationBuilder
from dilax.data.prepared import prepare
from dilax.runtime.files import alone

Usage = namedtuple("Usage", "total used free")


def test_an_interrupt_leaves_nothing(source, home, variant_dir, monkeypatch):
    def interrupting(self, tree, item):
        if item.id == "b":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)
        return SegmentationBuilder.label(self, tree, item)

    # A shell's background jobs begin with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(Toys, "label", interrupting, raising=False)
        with pytest.raises(KeyboardInterrupt):
            prepare("toys", source, home)
    signal.signal(signal.SIGINT, before)
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
    with pytest.raises(OSError, match=r"file/home"):
        prepare("toys", source, tmp_path / "file/home")
