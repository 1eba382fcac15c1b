import collections
import dataclasses
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import tiny_config, write_images

import dilax
from dilax.data import DatasetSpec, colour_map
from dilax.models import init_params
from dilax.training import pack
from dilax.training.build import build_model
from dilax.training.checkpoint import Checkpoints, stage_params
from dilax.training.serialization import to_json
from dilax.training.step import init_state

SPEC = DatasetSpec("three", ("dark", "light", "red"), colour_map(3), (1.0, 2.0, 3.0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of the tiny recipe, its configuration and its results."""
    root = tmp_path_factory.mktemp("trained")
    config = tiny_config(write_images(root / "data"))
    return root / "run", config, dilax.train(config, root / "run")


def _equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def _state(value: float):
    config = tiny_config("x")
    stage = config.stages[0]
    params = init_params(build_model(config, stage, 3), 0)
    filled = jax.tree.map(lambda x: np.full_like(x, value), params)
    return jax.tree.map(jax.numpy.asarray, init_state(filled, stage))


def test_saved_state_comes_back_whole(tmp_path):
    saved = _state(0.25).replace(step=jax.numpy.int32(7))
    checkpoints = Checkpoints(tmp_path, "s")
    checkpoints.save(saved, losses=(0.1, 3.0))
    checkpoints.close()
    restored, losses = Checkpoints(tmp_path, "s").restore(_state(0.0))
    assert (int(restored.step), losses) == (7, (0.1, 3.0))
    assert _equal(restored, saved)
    kinds = jax.tree.structure(restored.opt_state)
    assert kinds == jax.tree.structure(saved.opt_state)


def test_a_full_disk_is_noticed_before_a_checkpoint_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    checkpoints = Checkpoints(tmp_path, "s")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(OSError, match=r"takes up to 1\.\d+MB, but 1\.00kB are free"):
        checkpoints.save(_state(0.0))
    assert not [*(tmp_path / "checkpoints" / "s").iterdir()]


def test_a_full_disk_is_an_os_error_that_names_the_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space [os_error_code='28']")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    checkpoints = Checkpoints(tmp_path, "s")
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoints.save(_state(0.0))
    assert caught.value.filename == str(tmp_path / "checkpoints" / "s")


def test_what_a_kill_left_half_written_or_half_deleted_is_cleared_away(tmp_path):
    Checkpoints(tmp_path, "s").close()
    folder = tmp_path / "checkpoints" / "s"
    for name in ("3.orbax-checkpoint-tmp", ".deleted/1/params"):
        (folder / name).mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, "s")
    assert checkpoints.latest is None
    assert not [*folder.iterdir()]


def test_last_two_and_best_are_kept_and_no_others(tmp_path):
    checkpoints = Checkpoints(tmp_path, "s")
    for step, score in enumerate((0.1, 0.9, 0.3, 0.2, None), start=1):
        checkpoints.save(_state(step).replace(step=jax.numpy.int32(step)), score)
    checkpoints.close()
    folders = {p.name for p in (tmp_path / "checkpoints" / "s").iterdir()}
    assert folders == {"2", "4", "5"}


def _two_steps(workdir):
    checkpoints = Checkpoints(workdir, "front_end")
    for step in (2, 4):
        filled = _state(step).replace(step=jax.numpy.int32(step))
        checkpoints.save(filled, losses=(float(step),))
    checkpoints.close()
    return workdir / "checkpoints" / "front_end" / "4"


FAULTS = {
    "flipped bit": lambda path: path.write_bytes(
        bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    ),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["params/d/*", "params/_METADATA", "checksums.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_restored(
    place, fault, tmp_path, caplog
):
    last = _two_steps(tmp_path)
    path = sorted(last.glob(place), key=lambda path: path.stat().st_size)[-1]
    FAULTS[fault](path)
    if (place, fault) == ("checksums.json", "missing"):
        pytest.skip("as those that version 0.1 wrote")
    with pytest.raises(ValueError, match=rf"{path}: is (damaged|missing)"):
        stage_params(tmp_path, tiny_config("x"), "front_end", SPEC)
    checkpoints = Checkpoints(tmp_path, "front_end")
    state, losses = checkpoints.restore(_state(0.0))
    assert str(path) in caplog.text
    assert losses == (2.0,)
    assert _equal(state, _state(2.0).replace(step=jax.numpy.int32(2)))
    checkpoints.save(_state(9.0).replace(step=jax.numpy.int32(4)))  # trained again
    checkpoints.close()
    params = stage_params(tmp_path, tiny_config("x"), "front_end", SPEC)
    assert {float(leaf.mean()) for leaf in jax.tree.leaves(params)} == {9.0}


def test_checkpoints_without_checksums_are_read(tmp_path):
    last = _two_steps(tmp_path)
    (last / "checksums.json").unlink()
    shutil.rmtree(last / "losses")  # version 0.1 had neither
    state, losses = Checkpoints(tmp_path, "front_end").restore(_state(0.0))
    assert (int(state.step), losses) == (4, ())


def test_a_stage_whose_start_is_damaged_trains_that_again(trained, tmp_path, caplog):
    workdir, config, results = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "joint")
    (copy / "checkpoints" / "joint").mkdir()
    [path] = (copy / "checkpoints" / "context" / "4" / "params" / "d").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert dilax.train(config, copy) == results
    assert str(path) in caplog.text
    again, first = (dilax.load_checkpoint(path).params for path in (copy, workdir))
    assert _equal(again, first)


def test_the_best_outlives_a_resume_and_is_the_one_that_loads(tmp_path):
    for step, score in ((2, 0.9), (4, 0.3), (6, 0.5)):  # a new process each
        checkpoints = Checkpoints(tmp_path, "front_end")
        filled = _state(step).replace(step=jax.numpy.int32(step))
        checkpoints.save(filled, score)
        checkpoints.close()
    folders = {p.name for p in (tmp_path / "checkpoints" / "front_end").iterdir()}
    assert {name for name in folders if name.isdigit()} == {"2", "4", "6"}
    config = tiny_config("x")
    for which, value in (("best", 2), ("last", 6)):
        params = stage_params(tmp_path, config, "front_end", SPEC, which)
        assert {float(leaf.mean()) for leaf in jax.tree.leaves(params)} == {value}


def test_best_of_a_stage_that_was_never_evaluated_is_refused(trained):
    with pytest.raises(ValueError, match=r"joint: was not evaluated .* use the last"):
        dilax.load_checkpoint(trained[0], "joint", checkpoint="best")


def test_stages_carry_on_what_their_start_trained(trained):
    workdir, _, _ = trained
    _, front, _ = dilax.load_checkpoint(workdir, "front_end")
    _, context, _ = dilax.load_checkpoint(workdir, "context")
    _, joint, _ = dilax.load_checkpoint(workdir)
    assert set(front) == {"front_end"}
    assert set(context) == set(joint) == {"front_end", "context"}
    assert _equal(context["front_end"], front["front_end"])
    assert not _equal(joint["front_end"], front["front_end"])
    assert not _equal(joint["context"], context["context"])


def test_loaded_network_scores_what_results_say(trained):
    workdir, _, results = trained
    for stage in ("front_end", "context", "joint"):
        model, params, spec = dilax.load_checkpoint(workdir, stage)
        _, _, source = dilax.training.open_evaluation(workdir)
        scores = dilax.evaluate(dilax.Predictor(model, params, spec), source, title="")
        assert scores.as_dict() == results["stages"][stage]
    assert spec.classes == ("dark", "light", "red")


def test_best_checkpoint_is_the_one_that_evaluated_best(trained):
    workdir, _, _ = trained
    lines = [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    scores = {
        line["step"]: line["val_mean_iou"]
        for line in lines
        if line["stage"] == "front_end" and "val_mean_iou" in line
    }
    assert set(scores) == {3, 6}
    model, params, spec = dilax.load_checkpoint(workdir, "front_end", checkpoint="best")
    _, _, source = dilax.training.open_evaluation(workdir)
    found = dilax.evaluate(dilax.Predictor(model, params, spec), source, title="")
    assert found.mean_iou == pytest.approx(max(scores.values()))


def test_a_stage_starts_from_its_start_even_in_a_fresh_process(trained, tmp_path):
    workdir, config, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "joint")
    results = json.loads((copy / "results.json").read_text())
    del results["stages"]["joint"]
    (copy / "results.json").write_text(json.dumps(results))
    dilax.train(config, copy)
    again, first = (dilax.load_checkpoint(path).params for path in (copy, workdir))
    assert _equal(again, first)


def test_checkpoint_of_another_model_is_refused_by_name(trained, tmp_path):
    workdir, config, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    wider = dataclasses.replace(config.model, width_multiplier=2.0)
    other = dataclasses.replace(config, model=wider)
    (copy / "config.json").write_text(to_json(other))
    with pytest.raises(ValueError, match=r"checkpoints/front_end/.* does not fit"):
        dilax.load_checkpoint(copy, "front_end")


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "config.json: not the folder of a run"),
        ("checkpoints/joint", "checkpoints/joint: no checkpoint of stage 'joint'"),
    ],
)
def test_missing_pieces_are_named(trained, tmp_path, remove, message):
    copy = tmp_path / "run"
    shutil.copytree(trained[0], copy)
    path = copy / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=message):
        dilax.load_checkpoint(copy)


def test_folder_without_a_finished_checkpoint_is_named(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained[0], copy)
    shutil.rmtree(copy / "checkpoints" / "joint")
    (copy / "checkpoints" / "joint").mkdir()
    with pytest.raises(ValueError, match="contains no finished checkpoint; train"):
        dilax.load_checkpoint(copy)


@pytest.mark.parametrize("stage", ["front_end", "context", "joint"])
def test_a_packed_stage_is_the_same_network_alone(trained, tmp_path, stage):
    workdir, _, _ = trained
    folder = pack(workdir, tmp_path / "packed", stage)
    model, params, spec = dilax.load_checkpoint(folder)
    run_model, run_params, run_spec = dilax.load_checkpoint(workdir, stage)
    assert (model, spec) == (run_model, run_spec)
    assert jax.tree.structure(params) == jax.tree.structure(run_params)
    assert _equal(params, run_params)
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    labels = dilax.load_predictor(folder)(image)
    assert np.array_equal(labels, dilax.load_predictor(workdir, stage)(image))


def test_a_packed_network_tells_of_no_folder_and_is_not_written_over(trained, tmp_path):
    workdir, config, _ = trained
    folder = pack(workdir, tmp_path / "packed")
    texts = [p.read_text() for p in folder.glob("*.json")]
    assert len(texts) == 2
    assert not any(str(config.data.data_dir) in text for text in texts)
    before = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match="packed: contains a network"):
        pack(workdir, folder, "front_end")
    assert (folder / "weights.safetensors").read_bytes() == before


def test_training_starts_from_a_packed_network(trained, tmp_path):
    workdir, config, _ = trained
    folder = pack(workdir, tmp_path / "packed", "front_end")
    stage = dataclasses.replace(
        config.stages[0], optimizer=dataclasses.replace(config.stages[0].optimizer)
    )
    stage.steps, stage.optimizer.learning_rate = 1, 0.0
    again = dataclasses.replace(config, stages=(stage,), init=str(folder))
    dilax.train(again, tmp_path / "again")
    _, params, _ = dilax.load_checkpoint(tmp_path / "again")
    assert _equal(params, dilax.load_checkpoint(workdir, "front_end")[1])


def test_a_network_that_there_is_not_is_named_beside_those_that_there_are():
    with pytest.raises(ValueError, match=r"pretrained 'kamvid': .*contains camvid"):
        dilax.pretrained("kamvid")
