"""Training on eight devices, spread in every way, is training on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.programs import read_program
from dilax.data import DatasetSpec
from dilax.models import BASIC, FrontEnd, Layer, init_params
from dilax.ops.lowerings import convolve
from dilax.training import (
    Config,
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)
from dilax.training.build import build_model
from dilax.training.estimate import plan_step
from dilax.training.sharding import Placement, build_mesh
from dilax.training.step import init_state, jit_train_step, split_params

SPEC = DatasetSpec("s", ("a", "b", "c"), ((0, 0, 0),) * 3, (102.93, 111.36, 116.52))
LAYERS = (
    Layer("conv1", 3, 8),
    Layer("pool1", 2),
    Layer("conv2", 3, 8, dilation=2),
    Layer("pool2", 2),
    Layer("fc6", 3, 16, dilation=4, dropout=0.5),
    Layer("fc7", 1, 16, dropout=0.5),
)
MARGIN = FrontEnd(3, LAYERS).margin
MESHES = {
    "data": MeshConfig(data=8),
    "all three": MeshConfig(data=2, rows=2, model=2),
    "rows, and whole parameters nowhere": MeshConfig(data=4, rows=2, shard_params=True),
}
DATA_AND_ROWS = MeshConfig(data=2, rows=4)


def _config(mesh, model=None, **fields):
    given = {"trains": "all", "context": BASIC[:2], "batch_size": 8, **fields}
    rate = OptimizerConfig(learning_rate=1e-3)
    stage = StageConfig("joint", optimizer=rate, **given)
    options = model or ModelConfig(layers=LAYERS)
    return Config("meshes", DataConfig(), options, (stage,), mesh=mesh), stage


def _setup(mesh, model=None, **fields):
    config, stage = _config(mesh, model, **fields)
    model = build_model(config, stage, 3)
    return model, stage, Placement(config, stage, model)


def _batch(inner=20, margin=MARGIN, stride=4):
    rng = np.random.default_rng(0)
    size, cells = inner + 2 * margin, inner // stride
    labels = rng.integers(0, 3, (8, cells, cells)).astype(np.uint8)
    labels[0, : cells - 1] = 255  # examples differ in how many pixels are valid
    images = rng.integers(0, 256, (8, size, size, 3)).astype(np.uint8)
    return {"image": images, "label": labels}


def _train(mesh, batch, steps=2, model=None, **fields):
    """The state after some steps, whole, and the losses; and the placement."""
    model, stage, placement = _setup(mesh, model, **fields)
    params = init_params(model, 0)
    final = params["front_end"][model.front_end.final_name]
    final["kernel"] *= 100
    trained, frozen = placement.parameters(split_params(params, stage))
    state = placement.parameters(init_state(trained, stage))
    step = jit_train_step(model, stage, SPEC, 0, placement)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, frozen, placement.batch(batch), None)
        losses.append(float(metrics["loss"]))
    return state, losses, placement


def _whole(tree, placement):
    return jax.tree.map(np.asarray, placement.local(tree))


def _assert_same(ours, theirs):
    total = optax.tree.norm(theirs)  # biases before a norm have gradients of nothing
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-7 * total


@functools.cache
def _trained(name):
    return _train(MESHES[name], _batch())


@pytest.fixture(scope="module")
def one_device():
    state, losses, placement = _train(MeshConfig(data=1), _batch())
    return _whole(state.params, placement), _whole(state.opt_state, placement), losses


def test_these_tests_see_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("name", MESHES)
def test_parameters_and_gradients_are_those_of_one_device(name, one_device):
    params, momentum, losses = one_device
    state, ours, placement = _trained(name)
    np.testing.assert_allclose(ours, losses, rtol=1e-5)
    assert losses[1] != losses[0]
    # After a step of momentum 0.9 the buffers are the gradients, times the rate.
    _assert_same(_whole(state.opt_state, placement), momentum)
    _assert_same(_whole(state.params, placement), params)


def test_a_network_that_pads_and_upsamples_inside_is_the_same():
    slim = ModelConfig(layers=LAYERS, padding="same", upsample=True)
    batch = _batch(inner=36, margin=0, stride=1)
    one, _, first = _train(MeshConfig(data=1), batch, model=slim)
    many, _, place = _train(DATA_AND_ROWS, batch, model=slim)
    _assert_same(_whole(many.params, place), _whole(one.params, first))


@pytest.mark.parametrize(
    "name, parts",
    [("ohem", 1), ("lovasz", 1), ("dice", 2)],  # not sums over pixels
)
def test_every_loss_is_that_of_one_device_also_in_parts_of_a_batch(name, parts):
    """Rows that fill up a map are ignored, and images' pixels found over devices."""
    loss = LossConfig(name, gamma=1.0, threshold=0.4)
    fields = {"loss": loss, "ema": 0.5, "accumulate": parts}
    one, losses, first = _train(MeshConfig(data=1), _batch(), **fields)
    many, ours, place = _train(DATA_AND_ROWS, _batch(), **fields)
    np.testing.assert_allclose(ours, losses, rtol=1e-5)
    _assert_same(_whole(many.params, place), _whole(one.params, first))
    _assert_same(_whole(many.ema, place), _whole(one.ema, first))
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, one.ema, one.params))
    assert moved > 0


def test_batches_are_normalised_over_all_devices():
    model = ModelConfig("drn_d_22", width_multiplier=1 / 16)
    batch = _batch(inner=32, margin=0, stride=8)
    batch["label"] = np.random.default_rng(1).integers(0, 3, batch["label"].shape)
    batch["label"] = batch["label"].astype(np.uint8)
    one, losses, first = _train(MeshConfig(data=1), batch, model=model)
    many, ours, place = _train(MESHES["data"], batch, model=model)
    np.testing.assert_allclose(ours, losses, rtol=1e-4)
    kinds = _statistics(_whole(one.params, first))
    for path, value in _statistics(_whole(many.params, place)).items():
        np.testing.assert_allclose(value, kinds[path], rtol=1e-3, atol=1e-4)
    assert kinds


def _statistics(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {p: leaf for p, leaf in leaves if p[-1].key in ("mean", "var")}


def test_maps_train_the_context_module_over_rows():
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((8, 21, 30, 3), np.float32),
        "label": rng.integers(0, 3, (8, 21, 30)).astype(np.uint8),
    }
    fields = {"trains": "context", "inputs": "maps", "start": "front_end"}
    fields["context"] = BASIC[:4]
    one, _, first = _train(MeshConfig(data=1), batch, **fields)
    many, _, place = _train(MeshConfig(rows=8), batch, **fields)
    _assert_same(_whole(many.params, place), _whole(one.params, first))


def test_head_and_state_lie_where_the_mesh_says():
    state, _, _ = _trained("all three")
    shapes = {
        name: {
            s.data.shape
            for s in state.params["front_end"][name][leaf].addressable_shards
        }
        for name, leaf in (("fc6", "kernel"), ("fc7", "kernel"), ("conv2", "kernel"))
    }
    assert shapes == {
        "fc6": {(3, 3, 8, 8)},
        "fc7": {(1, 1, 8, 16)},
        "conv2": {(3, 3, 8, 8)},
    }
    state, _, _ = _trained("rows, and whole parameters nowhere")
    buffers = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 4]
    parts = [next(iter(x.addressable_shards)).data.size / x.size for x in buffers]
    assert sorted(set(parts)) == [1 / 4, 1.0]  # 1: of three classes, which 4 cannot cut


@pytest.mark.parametrize(
    "mesh, message",
    [
        (MeshConfig(rows=3), "mesh.rows=3.*does not divide the 8 devices"),
        (MeshConfig(data=3), "mesh.data=3: there are 8 devices, 8 for data"),
        (MeshConfig(data=4, rows=4), "mesh.data=4: there are 8 devices, 2 for data"),
        (MeshConfig(data=8), "mesh.data=8: does not divide the 4 examples"),
    ],
)
def test_a_mesh_that_does_not_fit_names_the_number_to_change(mesh, message):
    with pytest.raises(ValueError, match=message):
        build_mesh(mesh, examples=4)


@pytest.mark.parametrize(
    "data, rows, divided", [(8, 1, False), (8, 1, True), (2, 4, False), (1, 8, False)]
)
def test_devices_exchange_parameters_and_halos_and_compute_nothing_twice(
    data, rows, divided
):
    mesh = MeshConfig(data=data, rows=rows, shard_params=divided)
    config, stage = _config(mesh, crop=(128 + 2 * MARGIN,) * 2)
    planned = plan_step(config, SPEC, stage)
    program = read_program(planned.compile())
    parameters = 4 * planned.cost.parameters  # a count and the loss come on top
    assert program.received("all-reduce") == pytest.approx(parameters, rel=0.05)
    assert program.received("all-gather") <= divided * parameters  # never maps
    assert bool(program.received("collective-permute")) == (rows > 1)
    # The rest is rows of maps that eight devices, or pools, do not divide.
    assert program.flops <= 1.28 * planned.flops / 8


def test_by_default_as_many_devices_work_as_divide_the_examples():
    assert dict(build_mesh(MeshConfig(), 6).shape) == {"data": 2, "rows": 1, "model": 1}
    assert dict(build_mesh(MeshConfig(rows=2), 8).shape)["data"] == 4


def test_phases_of_a_divided_batch_stay_where_they_are():
    # With the phases outside the batch, every device computed the whole batch.
    mesh = jax.make_mesh((8,), ("data",))
    images = jax.NamedSharding(mesh, jax.P("data"))
    everywhere = jax.NamedSharding(mesh, jax.P())

    def squares(x, kernel):
        return jnp.sum(convolve(x, kernel, 2, "phases") ** 2)

    step = jax.jit(
        jax.value_and_grad(squares, (0, 1)),
        in_shardings=(images, everywhere),
        out_shardings=(everywhere, (images, everywhere)),
    )
    shapes = ((16, 12, 12, 4), (3, 3, 4, 4))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = step.lower(*arrays).compile().as_text()
    assert "all-reduce" in program  # of the loss and of the kernel's gradient
    assert "all-gather" not in program and "all-to-all" not in program
