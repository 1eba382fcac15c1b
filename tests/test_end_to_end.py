"""Whole runs, as a user starts them."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, write_images

import dilax
from dilax.data.prepared import prepare
from dilax.training.config import Config
from dilax.training.serialization import from_json, to_json
from experiments import camvid, voc

pytestmark = pytest.mark.slow

TRAIN = """
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import dilax
from dilax.training.config import Config
from dilax.training.serialization import from_json
dilax.train(from_json(Config, Path(sys.argv[1])), sys.argv[2])
"""


def _start(config, workdir):
    command = [sys.executable, "-c", TRAIN, str(config), str(workdir)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def _kill_when(process, reached):
    """SIGKILL as soon as `reached()`; False if the process ended before."""
    while process.poll() is None:
        if reached():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def _parameters(workdir):
    return jax.tree.leaves(dilax.load_checkpoint(workdir)[1])


@pytest.mark.full
def test_killed_at_many_moments_it_ends_where_an_uninterrupted_run_ends(tmp_path):
    config = tiny_config(write_images(tmp_path / "data"))
    dilax.train(config, tmp_path / "whole")
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert from_json(Config, path) == config
    workdir = tmp_path / "killed"
    log = workdir / "metrics.jsonl"

    def logged(lines):
        return lambda: log.exists() and log.read_text().count("\n") >= lines

    def saving():
        return any(workdir.glob("checkpoints/joint/*tmp*"))

    moments = [
        (workdir / "config.json").exists,
        logged(5),
        (workdir / "maps" / "front_end" / "train_whole" / "000003.msgpack").exists,
        logged(11),
        saving,
    ]
    killed = [_kill_when(_start(path, workdir), moment) for moment in moments]
    assert sum(killed) >= 4  # the last moment may pass between two looks
    assert _start(path, workdir).wait() == 0
    for a, b in zip(_parameters(tmp_path / "whole"), _parameters(workdir), strict=True):
        np.testing.assert_array_equal(a, b)
    whole, again = (
        (tmp_path / name / "results.json").read_text() for name in ("whole", "killed")
    )
    assert whole == again


def test_on_scenes_it_takes_dilation_to_tell_the_towers_apart(tmp_path):
    config = voc.quickstart()
    config.stages = config.stages[:3]
    for stage, steps, size in zip(config.stages, (60, 80, 80), (4, 8, 8), strict=True):
        stage.steps, stage.batch_size, stage.evaluate_every = steps, size, 0
        stage.optimizer.warmup = 20
    # In a process of its own, whose machine code is XLA's best (conftest.py).
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        results = pool.submit(dilax.train, config, tmp_path / "run").result()
    towers = {
        name: np.mean(
            [
                stage["iou_per_class"][c]
                for c in dilax.DATASETS["scenes"].context_classes
            ]
        )
        for name, stage in results["stages"].items()
    }
    assert towers["context"] > towers["control"] + 0.2
    assert towers["context"] > towers["front_end"] + 0.3
    means = {name: stage["mean_iou"] for name, stage in results["stages"].items()}
    assert means["context"] > means["control"] + 0.08
    assert means["context"] > means["front_end"] + 0.13


@pytest.mark.full
def test_table_3_over_two_seeds_is_printed_stored_and_not_trained_again(tmp_path):
    data = write_images(tmp_path / "data")
    small = {"steps": 2, "batch_size": 2, "crop": "(20,20)"}
    maps = {"steps": 2, "batch_size": 2, "crop": "(24,32)", "evaluate_every": 0}
    stages = dict.fromkeys(("basic", "large"), maps)
    stages |= {"front_end": small}
    stages |= {f"{n}_crfrnn": small for n in ("front_end", "basic", "large")}
    flags = [
        "--config.data.dataset=folder",
        "--config.model.layers="
        "(('conv1',3,6,1,0.0),('pool1',2,0,1,0.0),('fc',1,8,1,0.0))",
        *(
            f"--config.stages.{n}_crf.crf.{field}"
            for n in ("front_end", "basic", "large")
            for field in ("search_images=2", "grid.bilateral_weight=(1.0,)")
        ),
        *(
            f"--config.stages.{name}.{field}={value}"
            for name, fields in stages.items()
            for field, value in fields.items()
        ),
    ]
    script = Path(__file__).parent.parent / "experiments" / "table3.py"
    command = [sys.executable, script, "--seeds=0,1", f"--data_dir={data}", *flags]
    command.append(f"--workdir={tmp_path / 'runs'}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = [
        json.loads((tmp_path / "runs" / seed / "results.json").read_text())
        for seed in ("seed0", "seed1")
    ]
    assert [run["seed"] for run in runs] == [0, 1]
    figures = json.loads((tmp_path / "runs" / "table3.json").read_text())
    for name, stage in figures["stages"].items():
        assert stage["mean_iou"] == [r["stages"][name]["mean_iou"] for r in runs]
    for file in ("table3.md", "seeds.md"):
        assert (tmp_path / "runs" / file).read_text().strip() in done.stdout
    assert (tmp_path / "runs" / "seed1" / "pictures.png").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert {*again.stdout.splitlines()} <= {*done.stdout.splitlines()}
    assert not again.stderr  # no bar of any step, search or evaluation


@pytest.mark.full
def test_real_camvid_images_train_and_every_labelled_pixel_is_scored(
    real_data, tmp_path
):
    prepare("camvid", real_data / "CamVid", tmp_path / "prepared")
    config = camvid.small()
    config.data.data_dir = str(tmp_path / "prepared")
    config.stages = config.stages[:1]
    config.stages[0].steps = 40
    config.stages[0].evaluate_every = 0
    config.log_every = 10
    results = dilax.train(config, tmp_path / "run")
    source = dilax.training.open_evaluation(tmp_path / "run")[2]
    labelled = sum(int((sample["label"] != 255).sum()) for sample in source)
    assert len(source) == 101
    assert np.sum(results["stages"]["front_end"]["confusion"]) == labelled
    assert results["stages"]["front_end"]["pixel_accuracy"] > 0.3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.75 * losses[0]
    assert not list(itertools.islice((tmp_path / "run").rglob("*.partial"), 1))
