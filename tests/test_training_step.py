import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TABLE, config_of

from dilax.data import DatasetSpec
from dilax.models import BASIC, VGG16, Layer, init_params
from dilax.runtime import jit
from dilax.training import OptimizerConfig, StageConfig
from dilax.training.build import build_model
from dilax.training.step import init_state, make_train_step, split_params

SPEC = DatasetSpec("s", ("a", "b", "c"), ((0, 0, 0),) * 3, (102.93, 111.36, 116.52))
SGD = OptimizerConfig(learning_rate=1e-2)


def _stage(**fields) -> StageConfig:
    given = {"trains": "all", "context": BASIC[:3], "batch_size": 4, **fields}
    return StageConfig("joint", optimizer=SGD, **given)


def _batch(seed=0, size=20):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (4, 9, 9)).astype(np.uint8)
    labels[0, :7] = 255  # parts of a batch differ in how many pixels are valid
    images = rng.integers(0, 256, (4, size, size, 3)).astype(np.uint8)
    return {"image": images, "label": labels}


def _step(stage, layers=TABLE, steps=1, seed=0, batch=None, **options):
    """Parameters before, parameters after, and the last metrics."""
    model = build_model(config_of(layers, **options), stage, 3)
    params = init_params(model, 0)
    trained, frozen = split_params(params, stage)
    state = init_state(trained, stage)
    step = jit(make_train_step(model, stage, SPEC, seed))
    for _ in range(steps):
        state, metrics = step(state, frozen, batch or _batch())
    return params, {**frozen, **state.params}, metrics


@functools.cache
def _plain():
    """A step of the stage as it is."""
    return _step(_stage())


def _equal(a, b):
    same = jax.tree.map(lambda x, y: bool((x == y).all()), a, b)
    return all(jax.tree.leaves(same))


DEEP = tuple(row._replace(channels=row.channels // 4) for row in VGG16)
NO_DROPOUT = tuple(row._replace(dropout=0.0) for row in TABLE)


@pytest.mark.slow
def test_a_step_in_bfloat16_is_that_in_float32_to_its_rounding():
    before, after, metrics = _plain()
    _, half, rounded = _step(_stage(), dtype="bfloat16")
    assert rounded["loss"].dtype == rounded["gradient_norm"].dtype == jnp.float32
    assert float(rounded["loss"]) == pytest.approx(float(metrics["loss"]), rel=2e-2)
    for a, b, c in zip(*map(jax.tree.leaves, (before, after, half)), strict=True):
        assert c.dtype == jnp.float32
        moved, error = np.linalg.norm(b - a), np.linalg.norm(c - b)
        assert error <= 6e-2 * moved


def test_the_optimizer_s_state_is_float32_in_bfloat16():
    stage = _stage()
    model = build_model(config_of(TABLE, dtype="bfloat16"), stage, 3)
    state = init_state(init_params(model, 0), stage)
    state, _ = jit(make_train_step(model, stage, SPEC, 0))(state, {}, _batch())
    floats = [x for x in jax.tree.leaves(state) if x.dtype != jnp.int32]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.full), 2])
def test_rematerialisation_changes_no_step(accumulate):
    _, plain, _ = _step(_stage(accumulate=accumulate), steps=2)
    _, again, _ = _step(_stage(accumulate=accumulate, remat=True), steps=2)
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        plain,
        again,
    )


@pytest.mark.full
@pytest.mark.slow
def test_rematerialisation_saves_memory():
    def memory(remat):
        stage = _stage(remat=remat)
        model = build_model(config_of(DEEP), stage, 3)
        params = init_params(model, 0)
        state = jax.eval_shape(lambda p: init_state(p, stage), params)
        side = 256 + 2 * model.margin
        shapes = {"image": (4, side, side, 3), "label": (4, 32, 32)}
        batch = {n: jax.ShapeDtypeStruct(s, jnp.uint8) for n, s in shapes.items()}
        step = jit(make_train_step(model, stage, SPEC, 0), donate_argnums=0)
        return step.lower(state, {}, batch).compile().memory_analysis()

    # 0.78; of narrower networks, the first block's gradients need as much as all maps.
    assert memory(True).temp_size_in_bytes < 0.85 * memory(False).temp_size_in_bytes


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_give_the_step_of_the_whole_batch(parts):
    _, whole, a = _step(_stage(), NO_DROPOUT)
    _, parted, b = _step(_stage(accumulate=parts), NO_DROPOUT)
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), whole, parted
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trains", "moves"),
    [
        ("front_end", {"front_end"}),
        ("context", {"context"}),
        ("all", {"front_end", "context"}),
    ],
)
def test_a_stage_moves_only_what_it_trains(trains, moves):
    before, after, _ = _step(_stage(trains=trains))
    changed = {name for name in before if not _equal(before[name], after[name])}
    assert changed == moves


def test_seed_and_step_decide_dropout():
    first = _plain()[1]
    assert _equal(first, _step(_stage())[1])
    assert not _equal(first, _step(_stage(), seed=1)[1])
    model = build_model(config_of(TABLE), _stage(), 3)
    state = init_state(init_params(model, 0), _stage())
    step = jit(make_train_step(model, _stage(), SPEC, 0))
    losses = [
        float(step(state.replace(step=jnp.int32(n)), {}, _batch())[1]["loss"])
        for n in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_training_on_maps_equals_training_on_their_images():
    stage = _stage(trains="context")
    model = build_model(config_of(TABLE), stage, 3)
    params = init_params(model, 0)
    batch = _batch()
    x = batch["image"][..., ::-1].astype(np.float32) - np.float32(SPEC.mean)
    maps = jit(lambda p, x: model.apply({"params": p}, x, method="maps"))(params, x)
    no_dropout = _step(stage, NO_DROPOUT)[1]["context"]
    on_maps = _step(
        _stage(trains="context", inputs="maps"),
        batch={"image": np.asarray(maps), "label": batch["label"]},
    )[1]["context"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), no_dropout, on_maps
    )


def test_repeated_steps_learn_a_batch_by_heart():
    adam = OptimizerConfig("adam", learning_rate=5e-3)
    stage = StageConfig(
        "s", trains="all", context=BASIC[:2], batch_size=4, optimizer=adam
    )
    batch = _batch()
    grey = np.kron(batch["label"] % 3, np.ones((2, 2)))[..., None] * 80
    batch["image"] = np.pad(grey, ((0, 0), (1, 1), (1, 1), (0, 2))).astype(np.uint8)
    loss = float(_step(stage, NO_DROPOUT, steps=100, batch=batch)[2]["loss"])
    assert loss < 0.3 * np.log(3)


def test_a_step_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    layers = (Layer("conv1", 3, 6, dilation=2),)
    before, after, metrics = _step(_stage(), layers, batch=_batch(size=13))
    names = [("front_end", "conv1", 2, 0), ("front_end", "final", 1, 0)]
    names += [
        ("context", f"ctx_{row.name}", row.dilation, row.dilation) for row in BASIC[:3]
    ]
    names += [("context", "ctx_final", 1, 0)]
    weights = {}
    batch = _batch(size=13)
    x = batch["image"][..., ::-1].astype(np.float32) - np.float32(SPEC.mean)
    x = torch.tensor(x).permute(0, 3, 1, 2)
    for module, name, dilation, padding in names:
        layer = before[module][name]
        w = torch.tensor(np.asarray(layer["kernel"])).permute(3, 2, 0, 1)
        w = w.contiguous().requires_grad_()
        b = torch.tensor(np.asarray(layer["bias"]), requires_grad=True)
        weights[module, name] = w, b
        x = torch.nn.functional.conv2d(x, w, b, dilation=dilation, padding=padding)
        x = x if name.endswith("final") else x.relu()
    labels = torch.tensor(batch["label"].astype(np.int64))
    loss = torch.nn.functional.cross_entropy(x, labels, ignore_index=255)
    loss.backward()
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (module, name), (w, b) in weights.items():
        moved = w - 1e-2 * (w.grad + 5e-4 * w)
        kernel = moved.detach().permute(2, 3, 1, 0).numpy()
        np.testing.assert_allclose(after[module][name]["kernel"], kernel, atol=2e-5)
        bias = (b - 2e-2 * b.grad).detach().numpy()
        np.testing.assert_allclose(after[module][name]["bias"], bias, atol=2e-5)


@pytest.mark.slow
def test_parts_of_a_batch_are_held_one_after_the_other():
    """On a CPU the compiler would run all at once; nothing would be saved."""

    def held(parts):
        stage = _stage(batch_size=8, accumulate=parts)
        model = build_model(config_of(TABLE), stage, 3)
        state = init_state(init_params(model, 0), stage)
        batch = {
            "image": jax.ShapeDtypeStruct((8, 202, 202, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((8, 100, 100), jnp.uint8),
        }
        step = jit(make_train_step(model, stage, SPEC, 0))
        compiled = step.lower(state, {}, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert held(8) < 0.25 * held(1)


def test_a_step_takes_the_rate_of_its_batch():
    rates = dataclasses.replace(SGD, base_batch_size=2)
    before, after, metrics = _step(dataclasses.replace(_stage(), optimizer=rates))
    assert float(metrics["learning_rate"]) == pytest.approx(2e-2)
    _, fixed, _ = _plain()
    moves = [
        jax.tree.map(lambda a, b: a - b, new["front_end"], before["front_end"])
        for new in (after, fixed)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, moves), strict=True):
        np.testing.assert_allclose(ours, 2 * theirs, rtol=1e-3, atol=1e-6)


def test_norms_of_the_layers_gradients_make_up_the_whole_norm():
    stage = dataclasses.replace(_stage(), log_layers=True)
    before, _, metrics = _step(stage)
    layers = {n: v for n, v in metrics.items() if n.startswith("gradient_norm/")}
    names = {f"gradient_norm/{m}/{layer}" for m in before for layer in before[m]}
    assert set(layers) == names
    whole = np.linalg.norm(list(layers.values()))
    np.testing.assert_allclose(whole, metrics["gradient_norm"], rtol=1e-6)


def test_layers_with_rate_zero_take_no_gradient():
    rates = dataclasses.replace(SGD, lr_multipliers=(("front_end/", 0.0),))
    stage = dataclasses.replace(_stage(), optimizer=rates)
    before, after, metrics = _step(stage, NO_DROPOUT)
    changed = {name for name in before if not _equal(before[name], after[name])}
    assert changed == {"context"}
    _, _, context = _step(_stage(trains="context"), NO_DROPOUT)
    np.testing.assert_allclose(
        metrics["gradient_norm"], context["gradient_norm"], rtol=1e-5
    )
