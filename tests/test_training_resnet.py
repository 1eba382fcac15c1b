"""ResNets with DUC heads through the code that trains, evaluates, predicts all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import optimizer, tiny_config, write_images

import dilax
from dilax.data import DatasetSpec
from dilax.models import (
    BASIC,
    PLAIN_STEM,
    Block,
    apply_over_rows,
    init_params,
    row_mesh,
)
from dilax.runtime import jit
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)
from dilax.training.build import build_model, check_config
from dilax.training.initial import check_init
from dilax.training.step import init_state, make_train_step, split_params
from experiments import hdc

MODEL = ModelConfig(
    blocks=(
        Block("layer1_0", 64, 2),
        Block("layer2_0", 64, 1, 2),
    ),
    stem=PLAIN_STEM,
    width_multiplier=1 / 16,
    padding="same",
    final_rates=(1, 2),
    duc=4,
)
SPEC = DatasetSpec("s", ("a", "b", "c"), ((0, 0, 0),) * 3, (102.93, 111.36, 116.52))
STAGE = StageConfig(
    "net", trains="all", steps=6, batch_size=4, crop=(24, 32), optimizer=optimizer(0.01)
)


def _config(tmp_path, **model) -> Config:
    """One stage of a ResNet at a quarter of a cell, resumed every second step."""
    data = write_images(tmp_path / "data") if tmp_path else ""
    config = tiny_config(data)
    stage = dataclasses.replace(STAGE, steps=4, checkpoint_every=2)
    fields = {"model": dataclasses.replace(MODEL, **model), "stages": (stage,)}
    return dataclasses.replace(config, **fields)


@functools.cache
def _params(net):
    return init_params(net, 0)


class Steps:
    """Steps of a stage on batches, each from the parameters before."""

    def __init__(self, stage=STAGE, **model):
        model = dataclasses.replace(MODEL, **model)
        net = build_model(Config("c", DataConfig(), model, (stage,)), stage, 3)
        self.before = _params(net)
        trained, self.frozen = split_params(self.before, stage)
        self.state, self.losses = init_state(trained, stage), []
        self.step = jit(make_train_step(net, stage, SPEC, 0))

    def after(self, *batches):
        state = self.state
        for batch in batches or [BATCH]:
            state, metrics = self.step(state, self.frozen, batch)
            self.losses.append(float(metrics["loss"]))
        return {**self.frozen, **state.params}


def _batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    return {"image": images, "label": (images[:, ::2, ::2, 0] > 99).astype(np.uint8)}


BATCH = _batch()


@pytest.fixture(scope="module")
def adam():
    return Steps()


@pytest.mark.slow
def test_a_step_moves_running_statistics_a_tenth_of_the_way_to_the_batch_s(adam):
    image = jnp.asarray(BATCH["image"], jnp.float32)[..., ::-1]
    kernel = adam.before["front_end"]["conv1"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        image - np.float32(SPEC.mean),
        kernel,
        (2, 2),
        ((3, 3), (3, 3)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    moved = adam.after()["front_end"]["bn1"]
    np.testing.assert_allclose(moved["mean"], maps.mean((0, 1, 2)) / 10, rtol=1e-3)
    variance = maps.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(moved["var"], 0.9 + variance / 10, rtol=1e-3)


@pytest.mark.slow
def test_no_optimizer_moves_statistics(adam):
    """What a step leaves of them is what their own rule says, whatever the rate."""
    sgd = OptimizerConfig("sgd", learning_rate=0.1)
    other = Steps(dataclasses.replace(STAGE, optimizer=sgd))
    one, two = (steps.after()["front_end"]["bn1"] for steps in (adam, other))
    np.testing.assert_array_equal(one["mean"], two["mean"])
    assert (one["scale"] != two["scale"]).any()


@pytest.mark.slow
def test_the_loss_falls(adam):
    adam.after(*[BATCH] * 12)
    assert adam.losses[-1] < 0.8 * adam.losses[-12]


def test_frozen_statistics_stay_and_all_else_trains():
    steps = Steps(batch_norm="frozen")
    flat = jax.tree_util.tree_leaves_with_path
    for (path, a), (_, b) in zip(flat(steps.before), flat(steps.after()), strict=True):
        is_statistic = path[-1].key in ("mean", "var")
        assert bool((a == b).all()) == is_statistic, path


def test_a_frozen_resnet_under_a_trained_context_module_keeps_its_statistics():
    steps = Steps(dataclasses.replace(STAGE, trains="context", context=BASIC[:2]))
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()),
        steps.before["front_end"],
        steps.after()["front_end"],
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_accumulated_parts_move_statistics_by_their_mean():
    stage = dataclasses.replace(STAGE, accumulate=2, optimizer=optimizer(0.0))
    few = {"blocks": MODEL.blocks[:1], "final_rates": ()}
    ours = Steps(stage, **few).after()["front_end"]["bn1"]
    half = Steps(dataclasses.replace(stage, accumulate=1, batch_size=2), **few)
    parts = [{n: v[part::2] for n, v in BATCH.items()} for part in (0, 1)]
    both = [half.after(part)["front_end"]["bn1"] for part in parts]
    for name in ("mean", "var"):
        mean = sum(stats[name] for stats in both) / 2
        np.testing.assert_allclose(ours[name], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_resumes_evaluates_and_predicts_as_all_networks_do(tmp_path):
    config = _config(tmp_path)
    results = dilax.train(config, tmp_path / "whole")
    assert 0 < results["stages"]["net"]["mean_iou"] <= 1
    workdir = tmp_path / "cut"

    def cut():  # at step 2, the first checkpoint
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dilax.train(config, workdir, watch=cut)
    dilax.train(config, workdir)
    model, params, spec = dilax.load_checkpoint(workdir)
    _, whole, _ = dilax.load_checkpoint(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert (params["front_end"]["bn1"]["var"] != 1).all()
    image = np.random.default_rng(0).integers(0, 256, (37, 41, 3)).astype(np.uint8)
    labels = dilax.Predictor(model, params, spec)(image)
    assert labels.shape == (37, 41)
    path = tmp_path / "params.safetensors"
    dilax.save_weights(params, path, spec.mean)
    again, _ = dilax.load_weights(path, model)
    jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.slow
def test_predictions_are_of_scores_at_every_second_pixel(adam):
    """Whole, by tiles whose ends are the image's, and blended from one tile."""
    config = Config("c", DataConfig(), MODEL, (STAGE,))
    model = build_model(config, STAGE, 3)
    params = adam.after(*[BATCH] * 3)
    image = BATCH["image"][0]
    probabilities = {
        mode: dilax.Predictor(model, params, SPEC, mode=mode).probabilities(image)
        for mode in ("tiles", "whole", "blend")
    }
    x = np.float32(image[None, ..., ::-1]) - np.float32(SPEC.mean)
    logits = model.apply({"params": params}, jnp.asarray(x))
    assert logits.shape == (1, 16, 16, 3)
    expected = jax.nn.softmax(logits)[0]
    for mode in ("tiles", "whole"):
        np.testing.assert_allclose(probabilities[mode][::2, ::2], expected, atol=1e-5)
    assert probabilities["blend"].shape == (32, 32, 3)


def test_blended_tiles_hold_whole_cells_of_the_maps():
    config = Config("c", DataConfig(), MODEL, (STAGE,))
    model = build_model(config, STAGE, 3)
    spec = dataclasses.replace(SPEC, tile=(30, 46))
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    predictor = dilax.Predictor(model, _params(model), spec, mode="blend")
    probabilities = predictor.probabilities(image)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"padding": "valid"}, "model.padding='valid': a ResNet's layers pad"),
        ({"duc": 3}, "model.duc=3: does not divide the output stride of 8"),
        ({"duc": 0}, "model.duc=0: must be positive"),
    ],
)
def test_what_cannot_work_is_refused(fields, message):
    model = dataclasses.replace(MODEL, **fields)
    with pytest.raises(ValueError, match=message):
        check_config(Config("c", DataConfig(), model, (STAGE,)))


def test_a_recipe_for_imagenet_s_weights_says_where_a_resnet_s_are():
    with pytest.raises(ValueError, match=r"resnet101-63fe2227\.pth.*\(\(7,64,2\),\)"):
        check_init(hdc.paper())


@pytest.mark.parametrize("name", ["scenes", "camvid", "cityscapes", "paper"])
def test_the_experiment_s_networks_differ_in_rates_and_dense_upsampling(name):
    config = getattr(hdc, name)()
    check_config(config)
    models = {s.name: build_model(config, s, 5) for s in config.stages}
    assert models["hdc_duc"].front_end.duc == 4
    if name == "paper":
        return
    assert [m.output_stride for m in models.values()] == [1] * 4
    rates = [[row.dilation for row in m.front_end.blocks] for m in models.values()]
    assert rates[0] == rates[2] == [1] * 7 + [2] * 6 + [4] * 3
    assert rates[1] == rates[3] == [1] * 7 + [2, 2, 5, 9, 1, 2, 5, 9, 17]
    assert models["hdc"].front_end.duc == models["rate_2"].front_end.duc == 1


def test_rows_are_not_spread_over_devices():
    config = Config("c", DataConfig(), MODEL, (STAGE,))
    config.mesh.rows = 2
    with pytest.raises(ValueError, match=r"mesh.rows=2: strided convolutions"):
        check_config(config)
    model = build_model(config, STAGE, 3)
    with pytest.raises(ValueError, match="ResNet: its maps cannot be divided by rows"):
        apply_over_rows(model, _params(model), jnp.zeros((1, 32, 32, 3)), row_mesh(1))


def test_a_stage_that_starts_from_another_has_its_network():
    first = dataclasses.replace(STAGE, name="a")
    other = dataclasses.replace(STAGE, start="a", model=ModelConfig())
    with pytest.raises(ValueError, match=r"stages\[1\]\.model: differs from that"):
        check_config(Config("c", DataConfig(), MODEL, (first, other)))
