import json
import os

import pytest

from dilax.runtime.files import write_text
from dilax.training.records import MetricWriter


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(workdir, stage, start, steps):
    writer = MetricWriter(workdir, stage, start)
    for step in steps:
        writer.write(step, {"loss": 1 / step})
    writer.close()


def test_every_step_stands_once_after_a_resume(tmp_path):
    _write(tmp_path, "a", 0, range(1, 4))
    _write(tmp_path, "b", 0, range(1, 6))
    _write(tmp_path, "b", 2, range(3, 7))
    entries = [(e["stage"], e["step"]) for e in _lines(tmp_path / "metrics.jsonl")]
    wanted = [("a", s) for s in (1, 2, 3)] + [("b", s) for s in range(1, 7)]
    assert entries == wanted


def test_a_line_cut_off_by_a_kill_is_taken_away(tmp_path):
    _write(tmp_path, "a", 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "a", "st')
    _write(tmp_path, "a", 2, [3])
    assert [entry["step"] for entry in _lines(path)] == [1, 2, 3]


def test_values_that_json_lacks_become_null(tmp_path):
    writer = MetricWriter(tmp_path, "a", 0)
    writer.write(1, {"x": float("nan"), "y": 2.0})
    writer.close()
    [entry] = _lines(tmp_path / "metrics.jsonl")
    assert entry == {"stage": "a", "step": 1, "x": None, "y": 2.0}


def test_tensorboard_has_what_was_written_before_a_kill(tmp_path):
    writer = MetricWriter(tmp_path, "a", 0)
    writer.write(1, {"loss": 2.0})
    [events] = (tmp_path / "tensorboard" / "a").iterdir()
    assert b"loss" in events.read_bytes()
    writer.close()


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_text(path, "old")

    def full_disk(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
