import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config, write_images

import dilax
from dilax.evaluation import image_scores
from dilax.runtime import Interrupted
from dilax.training import NonFiniteLoss, OptimizerConfig, read_machine
from dilax.training.run import kept_indices


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Folder and results of an uninterrupted run, and what one saw who watched it."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    seen = workdir.parent / "seen.txt"

    def watch():
        results = workdir / "results.json"
        done = json.loads(results.read_text())["stages"] if results.exists() else {}
        with seen.open("a") as file:
            file.write(f"{len(done)}\n")

    return workdir, dilax.train(tiny_config(data), workdir, watch)


def _final(workdir, stage=""):
    return jax.tree.leaves(dilax.load_checkpoint(workdir, stage)[1])


def _metrics(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_results_hold_every_stage_in_order(whole):
    workdir, results = whole
    assert json.loads((workdir / "results.json").read_text()) == results
    assert list(results["stages"]) == ["front_end", "context", "joint"]
    pixels = 8 * 24 * 30  # two columns of each of the eight images are ignored
    for stage in results["stages"].values():
        assert np.sum(stage["confusion"]) == pixels
        assert set(stage["iou_per_class"]) == {"dark", "light", "red"}
    assert "front end" in (workdir / "results.md").read_text()


def test_full_resolution_and_stride_of_the_map_are_named_apart(whole):
    names = {
        (entry["stage"], key)
        for entry in _metrics(whole[0])
        for key in entry
        if "mean_iou" in key
    }
    assert names == {
        ("front_end", "val_mean_iou"),
        ("context", "val_mean_iou_stride_2"),
    }


def test_every_step_is_logged_with_loss_norm_and_rate(whole):
    losses = {
        (entry["stage"], entry["step"]): entry["loss"]
        for entry in _metrics(whole[0])
        if "loss" in entry
    }
    steps = [("front_end", 6), ("context", 4), ("joint", 4)]
    assert set(losses) == {(n, s) for n, count in steps for s in range(1, count + 1)}
    assert all(np.isfinite(loss) for loss in losses.values())


def test_who_watches_is_called_at_checkpoints_and_stages(whole):
    # Checkpoints and evaluations at steps 2, 3, 4, 6; at 2, 4; at 2, 4; and the stages.
    seen = (whole[0].parent / "seen.txt").read_text().split()
    assert [seen.count(str(done)) for done in range(4)] == [4, 1 + 2, 1 + 2, 1]


def test_predictions_are_kept_with_the_scores_of_their_images(whole, data):
    workdir, results = whole
    for name in results["stages"]:
        folder = workdir / "predictions" / name
        scores = json.loads((folder / "scores.json").read_text())
        assert [*scores] == [str(i) for i in range(8)]
        with (
            Image.open(folder / "0003.png") as guess,
            Image.open(data / "labels" / "val" / "3.png") as label,
        ):
            found = image_scores(
                ("dark", "light", "red"), np.asarray(label), np.asarray(guess)
            )
        assert scores["3"] == pytest.approx(found.mean_iou, abs=1e-6)


def test_few_predictions_are_kept_evenly_spread_with_those_of_the_sheet(data):
    config = tiny_config(data, saved_predictions=4, pictures=3)
    assert kept_indices(config, 8) == {0, 2, 4, 6} | {0, 2, 5}
    assert kept_indices(tiny_config(data, saved_predictions=0, pictures=0), 8) == set()


def test_speed_and_memory_of_every_stage_are_recorded(whole):
    workdir, results = whole
    steps = [entry for entry in _metrics(workdir) if "loss" in entry]
    assert all(0 < entry["step_seconds"] < 100 for entry in steps)
    machine = read_machine(workdir)
    assert machine["versions"]["jax"] == jax.__version__
    assert list(machine["stages"]) == list(results["stages"])
    for stage in machine["stages"].values():
        assert stage["evaluation_seconds"] > 0
        assert stage["memory"]["host"] > 1e8  # no process with JAX takes less


def test_a_finished_run_trains_no_further(whole, data):
    workdir, results = whole
    before = {p: p.stat().st_mtime_ns for p in (workdir / "checkpoints").rglob("*")}
    assert dilax.train(tiny_config(data), workdir) == results
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
def test_signals_save_and_the_same_call_reaches_the_same_end(whole, data, tmp_path):
    workdir = tmp_path / "run"
    # Sent when a checkpoint has been saved, at steps 2 and 4.
    for number, step in ((signal.SIGINT, 3), (signal.SIGTERM, 5)):
        signals = iter([number])

        def send(signals=signals):
            for number in signals:
                os.kill(os.getpid(), number)

        message = f"saved at step {step} of stage 'front_end'"
        with pytest.raises(Interrupted, match=message):
            dilax.train(tiny_config(data), workdir, watch=send)
        assert (workdir / "checkpoints" / "front_end" / f"{step}").exists()
    dilax.train(tiny_config(data), workdir)
    for a, b in zip(_final(whole[0]), _final(workdir), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_names_the_step_and_is_not_saved(data, tmp_path):
    config = tiny_config(data)
    wild = OptimizerConfig("sgd", learning_rate=1e30, weight_decay=0.0)
    config.stages[0].optimizer = wild
    config.log_every = 20
    with pytest.raises(NonFiniteLoss, match=r"step 2: .*, after losses \d\S+\. Lower"):
        dilax.train(config, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "front_end"
    assert not [p for p in folder.iterdir() if p.name.isdigit()]


def test_a_folder_of_another_run_is_refused_with_the_difference(whole, data):
    config = tiny_config(data)
    config.stages[1].optimizer = dataclasses.replace(
        config.stages[1].optimizer, learning_rate=0.5
    )
    message = r"stages: \[1\] optimizer: learning_rate: 0.02 there, 0.5 here"
    with pytest.raises(ValueError, match=message):
        dilax.train(config, whole[0])


def test_long_values_are_cut_to_where_they_differ(whole, data, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    before = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(before | {"name": 60 * "x" + " then"})
    )
    config = dataclasses.replace(tiny_config(data), name=60 * "x" + " now")
    with pytest.raises(ValueError, match=r'…x{19} then" there, …x{19} now" here'):
        dilax.train(config, folder)


def test_other_images_in_the_place_of_the_first_are_refused(whole, data, tmp_path):
    other = write_images(tmp_path / "other", count=9)
    with pytest.raises(ValueError, match=r"with other images .*8 there, 9 here"):
        dilax.train(tiny_config(other), whole[0])
    (other / "images" / "train" / "8.png").unlink()
    (other / "images" / "val" / "8.png").unlink()
    (other / "classes.txt").write_text("light\ndark\nred\n")
    with pytest.raises(ValueError, match="other images or classes"):
        dilax.train(tiny_config(other), whole[0])


def test_moved_data_is_no_other_run(whole, data, tmp_path):
    moved = tmp_path / "moved images é"
    shutil.copytree(data, moved)
    assert dilax.train(tiny_config(moved), whole[0]) == whole[1]


@pytest.mark.slow
def test_maps_that_reach_beyond_the_image_are_evaluated_on_the_image(data, tmp_path):
    config = tiny_config(data)
    config.model.upsample = True
    config.data.scale = 0.4  # 10×13 pixels, 5×7 cells
    config.stages = config.stages[:2]
    config.stages[0].crop = (12, 16)
    config.stages[1].crop = (10, 14)
    dilax.train(config, tmp_path / "run")
    names = {key for entry in _metrics(tmp_path / "run") for key in entry}
    assert "val_mean_iou_stride_1" in names


def test_predictions_are_kept_as_palette_images(whole):
    workdir, _ = whole
    files = sorted((workdir / "predictions" / "joint").glob("*.png"))
    assert [path.name for path in files] == [f"{i:04d}.png" for i in range(8)]
    with Image.open(files[0]) as picture:
        assert picture.mode == "P"


@pytest.mark.slow
def test_images_held_in_memory_train_the_same_parameters(data, whole, tmp_path):
    config = tiny_config(data)
    config.reading.cache = "host"
    config.stages = config.stages[:1]
    dilax.train(config, tmp_path / "run")
    one, other = (_final(run, "front_end") for run in (whole[0], tmp_path / "run"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_way_of_reading_may_change_when_a_run_goes_on(data, whole):
    config = tiny_config(data)
    config.reading.threads = 1
    assert dilax.train(config, whole[0]) == whole[1]


def test_the_share_of_time_that_steps_wait_for_input_is_logged(whole):
    waits = [e["input_wait"] for e in _metrics(whole[0]) if "input_wait" in e]
    assert len(waits) == 6 + 4 + 4
    assert all(0 <= wait < 1 for wait in waits)
