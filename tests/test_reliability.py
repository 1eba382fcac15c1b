"""What goes wrong from outside: kills, signals, damaged files, two at once, bad names.

docs/reliability.md has the promises; `python -m tests.campaign` tries them at random.
"""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tifffile
from networks import SLIM
from PIL import Image
from tiny_run import tiny_config, write_images

import dilax
from dilax.cli import modes
from dilax.evaluation import stage_table
from dilax.inference import predict_photos
from dilax.inference.photos import read_photo
from dilax.models import dilation8_camvid, init_params
from dilax.report import write_page
from dilax.runtime import Interrupted
from dilax.runtime.files import alone, printable, whole_or_not_at_all
from dilax.runtime.processes import Interrupts, job_settings, stop_on_signals
from dilax.training import (
    NonFiniteLoss,
    OptimizerConfig,
    import_weights,
    read_machine,
    write_text,
)
from dilax.training.records import MetricWriter
from dilax.training.run import check_run
from dilax.weights import save_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


def _one_stage(data, **fields):
    """The tiny recipe's front end alone: six steps, checkpoints at 2, 3, 4 and 6."""
    config = tiny_config(data, log_every=4, **fields)
    return dataclasses.replace(config, stages=config.stages[:1])


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an uninterrupted run, and its results."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, dilax.train(_one_stage(data), workdir)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "copy")


def _stop_at(call: int, number: int = signal.SIGTERM):
    """A callback that sends a signal when it is called for that time."""
    calls: list[None] = []

    def watch():
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)

    return watch


def _params(workdir):
    return jax.tree.leaves(dilax.load_checkpoint(workdir).params)


def _equal(one, other):
    return all(map(np.array_equal, _params(one), _params(other)))


def _eval(workdir, **flags):
    values = {
        "workdir": str(workdir),
        "data_dir": "",
        "split": "",
        "stage": "",
        "checkpoint": "last",
        "boundaries": False,
        "output": None,
        "weights": "",
        "tiling": "tiles",
        "scales": ["1"],
        "mirror": False,
        "rows": 1,
    }
    modes.MODES["eval"](SimpleNamespace(**{**values, **flags}))


# Signals and kills.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_last_checkpoint_is_written_ends_the_run(
    number, data, whole, tmp_path
):
    with pytest.raises(Interrupted, match="saved at step 6") as stop:
        dilax.train(_one_stage(data), tmp_path, _stop_at(4, number))
    assert stop.value.signum == number
    assert not (tmp_path / "results.json").exists()
    assert dilax.train(_one_stage(data), tmp_path) == whole[1]
    assert _equal(tmp_path, whole[0])


def test_a_signal_that_nobody_acted_on_is_not_lost():
    with pytest.raises(Interrupted), Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert not issubclass(Interrupted, Exception)  # which libraries catch


def test_a_signal_that_python_drops_comes_again(monkeypatch):
    class Destroyed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    old = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # and back again
    try:
        stop_on_signals()
        with pytest.raises(Interrupted):
            Destroyed()
            time.sleep(30)
    finally:
        signal.signal(signal.SIGTERM, old)


def test_an_interrupted_stage_is_not_done(data, whole, tmp_path, capsys):
    with pytest.raises(Interrupted, match="saved at step 3"):
        dilax.train(_one_stage(data), tmp_path, _stop_at(1))
    _eval(tmp_path, stage="front_end")
    assert "step 3 of 6, unfinished" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()
    # Version 0.1 wrote the evaluation of an interrupted stage as if it were done.
    shutil.copy(whole[0] / "results.json", tmp_path)
    assert "0 of 1 stages" in write_page(tmp_path).read_text()
    assert dilax.train(_one_stage(data), tmp_path) == whole[1]
    assert _equal(tmp_path, whole[0])
    # The first line after the resume averages the losses before it, too.
    losses = [
        [e["loss"] for e in map(json.loads, path.open()) if "loss" in e]
        for path in (tmp_path / "metrics.jsonl", whole[0] / "metrics.jsonl")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_an_import_that_was_killed_leaves_no_weights_to_the_next(tmp_path):
    models = [init_params(dilation8_camvid(**SLIM), seed) for seed in (0, 1)]
    for name, params in zip("ab", models, strict=True):
        save_weights(params, tmp_path / f"{name}.npz")
        import_weights(
            tmp_path / f"{name}.npz", "dilation8_camvid", tmp_path / "run", **SLIM
        )
        found = dilax.load_checkpoint(tmp_path / "run").params
        assert jax.tree.all(jax.tree.map(np.array_equal, found, params))
        (tmp_path / "run" / "config.json").unlink()  # written last


def test_checkpoints_without_a_configuration_are_not_continued(data, copy):
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="contains checkpoints or results of an"):
        dilax.train(_one_stage(data), copy)


# Damaged records.

RESULTS, METRICS, MACHINE = "results.json", "metrics.jsonl", "machine.json"


@pytest.mark.parametrize(
    "text", ["", "[]", '"a"', "{", '{"stages": []}', '{"stages": {"front_end": 1}}']
)
@pytest.mark.parametrize("name", [RESULTS, MACHINE])
def test_broken_records_are_named_with_the_remedy(name, text, data, copy):
    (copy / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: is damaged.*; delete it"):
        write_page(copy)
    if name == MACHINE:  # it holds no results, so training goes on
        (copy / RESULTS).unlink()
        dilax.train(_one_stage(data), copy)
        assert [*read_machine(copy)["stages"]] == ["front_end"]


def test_a_figure_that_does_not_follow_from_the_counts_is_damage(copy):
    results = json.loads((copy / RESULTS).read_text())
    results["stages"]["front_end"]["mean_iou"] += 0.1
    (copy / RESULTS).write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results.json: is damaged"):
        write_page(copy)


@pytest.mark.parametrize("name", ["front_end", "dark"])
def test_another_name_of_a_stage_or_class_is_damage(name, copy):
    text = (copy / RESULTS).read_text()
    assert f'"{name}"' in text
    (copy / RESULTS).write_text(text.replace(f'"{name}"', '"fron_end"'))
    with pytest.raises(ValueError, match=r"results.json: is damaged"):
        write_page(copy)


def test_broken_lines_of_metrics_are_left_out_and_a_cut_one_is_mended(copy, caplog):
    text = (copy / METRICS).read_text()
    broken = ["[]", "1", "{}", '{"stage": 1, "step": 2}', '{"stage": "a", "step": "b"}']
    (copy / METRICS).write_text("\n".join([*broken, text.rstrip("\n")]))
    write_page(copy)
    assert "metrics.jsonl: lines [1, 2, 3, 4, 5] are damaged" in caplog.text
    writer = MetricWriter(copy, "front_end", 6)
    writer.write(7, {"loss": 1.0})
    writer.close()
    lines = (copy / METRICS).read_text().splitlines()
    assert lines[:-1] == text.splitlines()


def test_the_page_ends_no_training(data, tmp_path, monkeypatch, caplog):
    from dilax.report import watcher

    def broken(*args, **kwargs):
        raise KeyError("anything")

    monkeypatch.setattr("dilax.report.page.read_runs", broken)
    dilax.train(_one_stage(data), tmp_path, watcher(tmp_path))
    assert "report.html: skipped ('anything')" in caplog.text


# Two at once.


def test_two_trainings_in_one_folder_are_refused(data, copy):
    here = rf"process {os.getpid()} on {socket.gethostname()}"
    with alone(copy / ".lock", "first"), pytest.raises(ValueError, match=here):
        dilax.train(_one_stage(data), copy)
    assert (copy / ".lock").read_text()  # of a process that has ended: no lock
    dilax.train(_one_stage(data), copy)


def test_partial_files_are_never_a_link_and_never_shared(tmp_path):
    path, other = tmp_path / "a.png", tmp_path / "other"
    other.write_text("mine")
    (tmp_path / ".a.png.partial").symlink_to(other)
    with whole_or_not_at_all(path) as one, whole_or_not_at_all(path) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (path.read_text(), other.read_text()) == ("1", "mine")


# Configurations.


def test_checks_change_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    config = _one_stage(Path(data.name))
    before = dataclasses.replace(config)
    run = check_run(config, tmp_path / "run")
    assert config == before
    assert run.config.data.data_dir == str(data)
    assert not (tmp_path / "run").exists()


# Training that went wrong.


def test_parameters_that_the_last_step_broke_are_not_saved(data, tmp_path):
    config = _one_stage(data)
    wild = OptimizerConfig("sgd", learning_rate=1e30, weight_decay=0.0)
    first = dataclasses.replace(config.stages[0], optimizer=wild, steps=1)
    config = dataclasses.replace(config, stages=(first,))
    with pytest.raises(NonFiniteLoss, match="step 1: norm of the parameters"):
        dilax.train(config, tmp_path)
    assert not [*(tmp_path / "checkpoints" / "front_end").iterdir()]


def test_a_training_split_without_labels_is_a_warning(tmp_path, caplog):
    data = write_images(tmp_path / "data")
    for path in (data / "labels" / "train").iterdir():
        Image.new("L", (32, 24), 255).save(path)
    dilax.train(_one_stage(data), tmp_path / "run")
    assert "have no labelled pixel" in caplog.text


def test_a_run_in_a_folder_that_cannot_be_written_is_evaluated(
    copy, monkeypatch, capsys
):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a CD
    _eval(copy)
    assert "mean IoU" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


# Names.


def test_names_cannot_write_to_the_terminal_or_break_tables():
    assert printable("sky\x1b[2J\udcff é\n") == "sky\\x1b[2J\\udcff é\n"
    scores = dict.fromkeys(("mean_iou", "pixel_accuracy", "mean_accuracy"), 0.5)
    scores["iou_per_class"] = {"a|b<script>\x1b[1m": 0.5}
    table = stage_table({"front_end": scores})
    assert "a\\|b&lt;script>\\x1b[1m" in table


def test_names_that_are_not_utf8_are_written_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "a.json", json.dumps(name, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text()) == name


def test_one_photograph_that_cannot_be_predicted_ends_no_job(tmp_path, monkeypatch):
    from telling import largest_channel

    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "c", "n" * 245):
        Image.new("RGB", (9, 7), "red").save(photos / f"{name}.png")
    # tifffile raises IndexError for this one.
    Image.new("RGB", (9, 7)).save(photos / "b.tif")
    content = (photos / "b.tif").read_bytes()
    (photos / "b.tif").write_bytes(content[:8] + b"\xff" * 40 + content[48:])
    done = predict_photos(largest_channel(), photos, tmp_path / "out")
    assert done.written == 2
    assert len(done.problems) == 2
    assert "b.tif: cannot be read" in done.problems[0]
    assert f"{'n' * 245}" in done.problems[1]


def test_a_colour_tiff_with_too_few_channels_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    grey = np.zeros((7, 9, 2), np.uint16)
    tifffile.imwrite(path, grey, photometric="minisblack", planarconfig="contig")
    content = path.read_bytes()
    tag = b"\x06\x01\x03\x00\x01\x00\x00\x00"  # PhotometricInterpretation, one short
    path.write_bytes(content.replace(tag + b"\x01", tag + b"\x02"))
    with pytest.raises(ValueError, match=rf"{path}: .*RGB with . channels"):
        read_photo(path, str(path))


# Jobs of several processes.


def test_the_coordinator_listens_on_the_address_that_is_given():
    values = SimpleNamespace(processes=2, process_id=0, distributed=False)
    for address, bound in (("127.0.0.1:99", "127.0.0.1:99"), ("head:99", None)):
        values.coordinator = address
        settings = job_settings(values, {})
        assert settings.get("coordinator_bind_address") == bound


@pytest.mark.slow
def test_processes_that_never_come_end_in_one_message():
    script = (
        "from types import SimpleNamespace; from dilax.runtime.processes import *;"
        "join_job(SimpleNamespace(coordinator='127.0.0.1:0', processes=2, process_id=0,"
        "distributed=False, join_timeout=1))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "not all processes of the job joined" in done.stderr
    assert "Traceback" not in done.stderr
