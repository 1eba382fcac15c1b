"""Every named network, and one's own, through all that trains, evaluates, predicts."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
from flax import linen as nn
from tiny_run import optimizer, tiny_config, write_images

import dilax
from dilax.cli import overridden
from dilax.models import BASIC, PLAIN_STEM, Block, Named
from dilax.training import LossConfig, StageConfig, estimate, quickstart, recipes
from dilax.training.build import check_config
from dilax.training.checkpoint import Checkpoints, stage_params
from dilax.training.config import Config, DataConfig, ModelConfig
from dilax.training.serialization import from_json
from experiments import camvid

NAMES = get_args(Named)


class Stopped(Exception):
    """What a run was stopped by."""


def _model(name):
    width = 1 / 8 if name.startswith("drn") else 1 / 16
    return ModelConfig(name, width_multiplier=width, head_channels=32)


def _scenes(name, steps, **fields):
    """A network of the name on embedded scenes at a quarter of their size."""
    stage = StageConfig(
        "network",
        trains="front_end",
        steps=steps,
        batch_size=4,
        crop=(64, 64),
        optimizer=recipes.adam(5e-3, warmup=5),
        **fields,
    )
    data = DataConfig("scenes", scale=0.25)
    return Config(name, data, _model(name), (stage,), log_every=1, eval_batch_size=4)


def _losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [e["loss"] for e in map(json.loads, lines) if "loss" in e]


# One of each kind: compiling all would take CI a quarter of an hour.
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn8s", "drn_d_22"])
def test_a_network_trains_on_scenes_evaluates_and_predicts(name, tmp_path):
    results = dilax.train(_scenes(name, 40), tmp_path / "run")
    losses = _losses(tmp_path / "run")
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
    scores = results["stages"]["network"]
    source = dilax.training.open_evaluation(tmp_path / "run")[2]
    labelled = sum(int((sample["label"] != 255).sum()) for sample in source)
    assert np.sum(scores["confusion"]) == labelled > 0
    assert scores["pixel_accuracy"] > 0.25
    predictor = dilax.load_predictor(tmp_path / "run")
    image = np.zeros((75, 90, 3), np.uint8)
    assert predictor(image).shape == (75, 90)
    probabilities = predictor.probabilities(image)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-4)


# On eight small images: what is stored comes back.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


def _tiny(data, name, **fields):
    """Four steps of a network, and two of it with a context module."""
    config = tiny_config(data)
    config.model = dataclasses.replace(_model(name), width_multiplier=1 / 32)
    first = StageConfig(
        "front_end",
        trains="front_end",
        steps=4,
        batch_size=4,
        crop=(24, 32),
        optimizer=optimizer(),
        evaluate_every=2,
        checkpoint_every=2,
        **fields,
    )
    second = dataclasses.replace(
        first, name="joint", trains="all", start="front_end", context=BASIC[:2], steps=2
    )
    config.stages = (first, second)
    return config


_leaves = jax.tree_util.tree_leaves_with_path


def _stats(params):
    """Running statistics, by name."""
    named = {tuple(key.key for key in path): leaf for path, leaf in _leaves(params)}
    return {name: leaf for name, leaf in named.items() if name[-1] in ("mean", "var")}


def _equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_stopped_run_ends_where_an_uninterrupted_one_ends(data, tmp_path):
    """With a moving average, which other tests of this do without."""

    def config():
        found = tiny_config(data)
        stage = found.stages[0]
        stage.steps, stage.checkpoint_every, stage.ema, stage.accumulate = 4, 2, 0.5, 2
        found.stages = (stage,)
        return found

    def stop():
        raise Stopped

    whole = dilax.train(config(), tmp_path / "whole")
    with pytest.raises(Stopped):
        dilax.train(config(), tmp_path / "run", watch=stop)  # at the first checkpoint
    assert dilax.train(config(), tmp_path / "run") == whole
    loaded = [dilax.load_checkpoint(tmp_path / run)[1] for run in ("run", "whole")]
    _equal(*loaded)


@pytest.mark.slow
def test_statistics_move_where_the_front_end_trains_and_stay_elsewhere(data, tmp_path):
    config = _tiny(data, "fcn8s")
    config.model = ModelConfig(
        blocks=(Block("layer1_0", 32, 2),),
        stem=PLAIN_STEM,
        width_multiplier=1 / 16,
        padding="same",
    )
    first = dataclasses.replace(config.stages[0], steps=2, evaluate_every=0)
    context = dataclasses.replace(
        first, name="context", trains="context", start="front_end", context=BASIC[:1]
    )
    maps = dataclasses.replace(context, name="maps", inputs="maps")
    config.stages = (first, context, maps)
    dilax.train(config, tmp_path / "run")
    spec = dilax.load_checkpoint(tmp_path / "run")[2]
    stats = [
        _stats(stage_params(tmp_path / "run", config, stage.name, spec))
        for stage in config.stages
    ]
    means = stats[0]["front_end", "bn1", "mean"]
    assert np.abs(means).max() > 0.1  # they start at 0
    _equal(stats[0], stats[1])
    _equal(stats[0], stats[2])


@pytest.mark.slow
def test_an_average_of_parameters_is_what_is_evaluated_and_started_from(data, tmp_path):
    config = tiny_config(data)
    config.stages = config.stages[:1]
    config.stages[0].ema = 0.9
    dilax.train(config, tmp_path / "run")
    kept = Checkpoints(tmp_path / "run", "front_end")
    plain = dataclasses.replace(config.stages[0], ema=0.0)
    raw = dataclasses.replace(config, stages=(plain,))
    spec = dilax.load_checkpoint(tmp_path / "run")[2]
    averaged = stage_params(tmp_path / "run", config, "front_end", spec)
    last = stage_params(tmp_path / "run", raw, "front_end", spec)
    kept.close()
    differ = jax.tree.map(lambda a, b: np.abs(a - b).max(), averaged, last)
    assert min(jax.tree.leaves(differ)) > 1e-5
    _equal(dilax.load_checkpoint(tmp_path / "run")[1], averaged)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("ema", 1.0, r"ema=1.0: must be from 0 to below 1"),
        ("loss", LossConfig(gamma=-1.0), r"loss.gamma=-1.0: must not be negative"),
        ("loss", LossConfig(threshold=2.0), r"loss.threshold=2.0: must be from 0 to 1"),
        (
            "loss",
            LossConfig("ohem", threshold=0.0, min_kept=0.0),
            "no pixel is hard; raise one",
        ),
    ],
)
def test_losses_that_cannot_be_are_refused(field, value, message, data):
    config = _tiny(data, "fcn8s")
    setattr(config.stages[0], field, value)
    with pytest.raises(ValueError, match=rf"stages\[0\]\.{message}|{message}"):
        dilax.train(config, "never")


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_these_networks_are_not_spread(name, data):
    config = _tiny(data, name)
    config.mesh.rows = 2
    with pytest.raises(ValueError, match=r"mesh.rows=2: strided convolutions"):
        check_config(config)


def test_a_name_and_a_table_of_blocks_are_one_too_many(data):
    config = _tiny(data, "drn_d_22")
    config.model.blocks, config.model.padding = (Block("layer1_0", 64),), "same"
    with pytest.raises(ValueError, match=r"network='drn_d_22': has its own table"):
        check_config(config)


@pytest.mark.parametrize("name", ["fcn8s", "segnet"])
def test_scores_of_every_pixel_leave_nothing_to_dense_upsampling(name, data):
    config = _tiny(data, name)
    config.model.duc = 4
    with pytest.raises(ValueError, match="duc=4: "):
        check_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["focal", "ohem", "lovasz", "dice"])
def test_each_loss_trains_a_tiny_network(name, data, tmp_path):
    config = tiny_config(data)
    stage = config.stages[0]
    stage.loss, stage.steps, stage.evaluate_every = LossConfig(name), 30, 0
    stage.accumulate, config.data.class_weight_power = 2, 0.5
    config.stages = (stage,)
    dilax.train(config, tmp_path / "run")
    assert from_json(Config, tmp_path / "run" / "config.json") == config
    losses = _losses(tmp_path / "run")
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:3])


# A Flax network of one's own as the front end, as docs/recipes.md shows it.


RECIPES = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def own():
    """What the recipe defines, after it has run."""
    section = RECIPES.read_text("utf-8").split("## Your own backbone")[1]
    first = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    names: dict = {"__name__": "mynet"}
    exec(compile(first, str(RECIPES), "exec"), names)
    return names


def test_the_recipe_learns_and_predicts_images_of_any_size(own):
    assert own["losses"][-1] < 0.6 * own["losses"][0]
    image = np.full((35, 46, 3), 90, np.uint8)
    assert own["predictor"](image).shape == (35, 46)
    assert own["model"].output_stride == 1 and own["model"].map_stride == 4


def test_a_configuration_trains_it_and_its_run_predicts(own, tmp_path, monkeypatch):
    module = type(sys)("mynet")
    module.Small = own["Small"]
    monkeypatch.setitem(sys.modules, "mynet", module)
    sizes = [f"--config.stages[{i}].steps=1" for i in range(4)]
    sizes += [f"--config.stages[{i}].crop=(32, 32)" for i in range(4)]
    config = quickstart()
    sizes.append("--config.data.scale=0.25")
    config = overridden(config, ["--config.model.backbone=mynet:Small", *sizes])
    config.stages = config.stages[:1]
    cost = estimate(config, dilax.training.build_spec(config))["front_end"]
    assert cost.memory > 0 and "operations unknown" in str(cost)
    dilax.train(config, tmp_path)
    predictor = dilax.load_predictor(tmp_path)
    assert type(predictor.model.front_end) is own["Small"]
    assert predictor(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)


def test_it_pads_inside_so_images_are_not_cut_into_the_release_s_tiles():
    config = overridden(camvid.paper(), ["--config.model.backbone=mynet:Small"])
    assert dilax.training.build_spec(camvid.paper()).tile == (900, 1100)
    assert dilax.training.build_spec(config).tile is None


@pytest.mark.parametrize("name", ["nowhere:Net", "mynet", "flax.linen:Dense", "os:no"])
def test_what_is_no_backbone_is_refused_with_the_remedy(name):
    config = overridden(quickstart(), [f"--config.model.backbone={name}"])
    message = rf"model.backbone={name}.*(not found.*module:Class|dilax.Backbone)"
    with pytest.raises(ValueError, match=message):
        dilax.training.check_run(config, Path("not made"))
    with pytest.raises(TypeError, match="Backbone"):
        dilax.DilatedNet(nn.Dense(3))
