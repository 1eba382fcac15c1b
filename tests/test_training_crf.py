"""Stages with a CRF: what trains, what is found, and what a run's folder gives back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import TABLE, config_of, optimizer, tiny_config, write_images

import dilax
from dilax.crf.search import CRFGrid
from dilax.data import DatasetSpec
from dilax.evaluation.boundary import BoundaryScores
from dilax.inference import Predictor
from dilax.runtime import jit
from dilax.training import (
    Config,
    CRFConfig,
    StageConfig,
    build_spec,
    estimate,
    open_evaluation,
    pack,
)
from dilax.training.build import build_model, build_rnn, init_stage
from dilax.training.checkpoint import stage_params
from dilax.training.loading import found_dense
from dilax.training.serialization import from_json
from dilax.training.step import (
    build_optimizer,
    init_state,
    make_train_step,
    split_params,
)

pytestmark = pytest.mark.slow

RNN = CRFConfig(
    "rnn",
    spatial_sigma=1.0,
    bilateral_sigma_xy=5.0,
    bilateral_sigma_rgb=20.0,
    iterations=2,
    train_steps=2,
)
DENSE = CRFConfig("dense", 1.0, 0.5, 5.0, 20.0, 0.5, iterations=2, search=False)


def crf_config(data) -> Config:
    """Front end; on it a dense CRF and a CRF-RNN; and one that trains jointly."""
    config = tiny_config(data)
    rnn = StageConfig(
        "rnn",
        trains="crf",
        start="front_end",
        steps=3,
        batch_size=2,
        crop=(14, 18),
        optimizer=optimizer(0.05, weight_decay=0.5),
        evaluate_every=2,
        checkpoint_every=1,
        crf=RNN,
    )
    given = dataclasses.replace(rnn, name="given", crf=DENSE)
    joint = dataclasses.replace(
        rnn, name="joint", trains="all", start="rnn", steps=1, evaluate_every=0
    )
    config.stages = (config.stages[0], given, rnn, joint)
    config.boundaries = True
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Folder and results of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, dilax.train(crf_config(data), workdir)


def _params(workdir, stage):
    return dilax.load_predictor(workdir, stage).params


def _unequal(a, b):
    """Per leaf, whether the two trees differ there."""
    return jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), a, b))


def test_results_hold_the_trimap_iou_of_the_predictions_that_are_kept(whole):
    workdir, results = whole
    _, spec, source = open_evaluation(workdir)
    for name, stage in results["stages"].items():
        near = BoundaryScores.empty(spec.classes, spec.ignore_label)
        for i, sample in enumerate(source):
            kept = Image.open(workdir / "predictions" / name / f"{i:04d}.png")
            near = near.plus(sample["label"], np.asarray(kept))
        assert stage["trimap_iou"] == near.as_dict()["trimap_iou"]


# What trains.


def test_a_frozen_network_stays_and_its_crf_trains(whole):
    before, after = (_params(whole[0], name) for name in ("front_end", "rnn"))
    assert not any(_unequal(before["front_end"], after["front_end"]))
    eye = np.eye(3)
    for name, start in (
        ("spatial_weights", 3 * eye),
        ("bilateral_weights", 5 * eye),
        ("compatibility", -eye),
    ):
        moved = np.abs(np.asarray(after["crf"][name]) - start).max()
        assert 0.01 < moved < 0.5, name


def test_joint_training_changes_the_network_and_its_crf(whole):
    before, after = (_params(whole[0], name) for name in ("rnn", "joint"))
    assert all(_unequal(before, after))


def test_weight_decay_leaves_the_crf_alone():
    params = {"crf": {"compatibility": np.eye(3)}, "fc": {"kernel": np.eye(3)}}
    rule = build_optimizer(optimizer(weight_decay=0.5), 10)
    still = jax.tree.map(np.zeros_like, params)
    updates, _ = rule.update(still, rule.init(params), params)
    assert not np.any(updates["crf"]["compatibility"])
    assert np.any(updates["fc"]["kernel"])


SPEC = DatasetSpec("s", ("a", "b", "c"), ((0, 0, 0),) * 3, (102.93, 111.36, 116.52))
IMAGE = np.kron(
    np.random.default_rng(1).integers(0, 256, (4, 6, 3)), np.ones((4, 4, 1))
).astype(np.uint8)
MARGIN = 1  # of TABLE


def _rnn_stage(stage, seed=0):
    """Model and parameters whose predictions differ, and none is certain."""
    table = (*TABLE[:-1], TABLE[-1]._replace(dropout=0.0))
    model = build_model(config_of(table), stage, 3)
    params = init_stage(model, stage, SPEC, seed)
    params["front_end"] = jax.tree.map(lambda x: x * 0.3, params["front_end"])
    return model, params


def _loss(stage, model, params, image, label):
    """That of one step on the whole image."""
    trained, frozen = split_params(params, stage)
    step = jit(make_train_step(model, stage, SPEC, 0))
    padded = np.pad(image, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "reflect")
    batch = {"image": padded[None], "label": label[None]}
    return float(step(init_state(trained, stage), frozen, batch)[1]["loss"])


@pytest.mark.parametrize(
    "upsample, weight, dtype",
    [(False, 0.0, np.uint8), (False, 1.0, np.uint16), (True, 1.0, np.uint8)],
)
def test_the_loss_is_the_mean_cross_entropy_of_what_is_predicted(
    upsample, weight, dtype
):
    stage = StageConfig("rnn", trains="crf", start="x", batch_size=1, crf=RNN)
    model, params = _rnn_stage(stage)
    model = model.clone(upsample=upsample)
    params["crf"] = jax.tree.map(lambda x: x * weight, params["crf"])
    image = IMAGE.astype(dtype) * (257 if dtype == np.uint16 else 1)
    label = np.random.default_rng(2).integers(0, 3, image.shape[:2]).astype(np.uint8)
    label[3:6] = 255
    predictor = Predictor(
        model, params, SPEC, mode="whole", crf=build_rnn(RNN, 3) if weight else None
    )
    probabilities = predictor.probabilities(image)
    rows, columns = np.nonzero(label != 255)
    wanted = -np.log(probabilities[rows, columns, label[rows, columns]]).mean()
    got = _loss(stage, model, params, image, label)
    assert got == pytest.approx(wanted, rel=1e-4)


def test_resized_images_are_trained_with_bandwidths_resized_along():
    half = build_rnn(RNN, 3, 0.5)
    assert (half.spatial_sigma, half.bilateral_sigma_xy) == (0.5, 2.5)
    assert half.bilateral_sigma_rgb == RNN.bilateral_sigma_rgb


# A run and its folder.


def test_every_stage_is_evaluated_with_its_crf_and_found_again(whole):
    workdir, results = whole
    assert list(results["stages"]) == ["front_end", "given", "rnn", "joint"]
    _, _, source = open_evaluation(workdir)
    for name, scores in results["stages"].items():
        again = dilax.evaluate(dilax.load_predictor(workdir, name), source, "")
        assert again.as_dict()["confusion"] == scores["confusion"], name
    first, *others = (s["confusion"] for s in results["stages"].values())
    assert all(other != first for other in others)


def test_a_checkpoint_is_the_network_alone(whole):
    model, params, spec = dilax.load_checkpoint(whole[0], "rnn")
    assert list(params) == ["front_end"]
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    own = dilax.load_predictor(whole[0], "front_end").probabilities(image)
    np.testing.assert_array_equal(
        Predictor(model, params, spec).probabilities(image), own
    )


@pytest.mark.parametrize("stage", ["given", "rnn"])
def test_a_packed_stage_has_its_crf(whole, tmp_path, stage):
    folder = pack(whole[0], tmp_path / "packed", stage)
    assert list(dilax.load_checkpoint(folder).params) == ["front_end"]
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    own, packed = (
        dilax.load_predictor(path, stage).probabilities(image)
        for path in (whole[0], folder)
    )
    np.testing.assert_array_equal(packed, own)


def test_cut_off_in_its_crf_stage_a_run_ends_where_it_would_have(whole, data, tmp_path):
    workdir = tmp_path / "run"

    def cut():
        if (workdir / "checkpoints" / "rnn").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dilax.train(crf_config(data), workdir, watch=cut)
    done = json.loads((workdir / "results.json").read_text())
    assert list(done["stages"]) == ["front_end", "given"]
    assert dilax.train(crf_config(data), workdir) == whole[1]
    ends = (_params(folder, "joint") for folder in (whole[0], workdir))
    assert not any(_unequal(*ends))


def test_a_crf_is_searched_once_and_then_read(data, tmp_path):
    config = crf_config(data)
    grid = CRFGrid((0.25, 1.0), (4.0,), (9.0,), (1.0,), (2.0,))
    config.stages[1].crf = dataclasses.replace(
        DENSE, search=True, search_images=3, grid=grid
    )
    config.stages = config.stages[:2]
    config.stages[0].steps = 1
    dilax.train(config, tmp_path / "run")
    path = tmp_path / "run" / "crf" / "given.json"
    found = from_json(CRFConfig, path)
    assert (found.spatial_sigma, found.iterations) == (2.0, 2)
    assert found.bilateral_weight in (0.125, 0.25, 0.5, 1.0, 2.0)
    record = (tmp_path / "run" / "crf" / "given_search.json").stat().st_mtime_ns
    edited = json.loads(path.read_text()) | {"spatial_sigma": 2.5}
    path.write_text(json.dumps(edited))
    (tmp_path / "run" / "results.json").unlink()  # cut off before it was written
    dilax.train(config, tmp_path / "run")
    assert (path.parent / "given_search.json").stat().st_mtime_ns == record
    read = found_dense(tmp_path / "run", config.stages[1])
    assert (read.spatial_sigma, read.bilateral_weight) == (2.5, found.bilateral_weight)
    path.unlink()
    with pytest.raises(ValueError, match=r"given\.json: no dense CRF of stage 'given'"):
        dilax.load_predictor(tmp_path / "run", "given")


def test_a_dense_stage_has_the_parameters_of_its_start(whole, data):
    workdir, _ = whole
    config, spec, _ = open_evaluation(workdir)
    ours, start = (
        stage_params(workdir, config, name, spec) for name in ("given", "front_end")
    )
    assert not any(_unequal(ours, start))
    assert not (workdir / "checkpoints" / "given").exists()


def test_what_steps_cost_is_estimated_of_those_stages_that_take_some(data):
    config = crf_config(data)
    config.stages = config.stages[:3]
    costs = estimate(config, build_spec(config))
    assert list(costs) == ["front_end", "rnn"]
    assert all(cost.seconds > 0 for cost in costs.values())


def test_a_run_written_before_there_were_crfs_is_read(whole, tmp_path):
    text = json.loads((whole[0] / "config.json").read_text())
    for stage in text["stages"]:
        stage.pop("crf")
    (tmp_path / "config.json").write_text(json.dumps(text))
    old = from_json(Config, tmp_path / "config.json")
    assert [stage.crf for stage in old.stages] == [None] * 4
