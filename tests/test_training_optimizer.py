import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dilax.training import OptimizerConfig
from dilax.training.step import build_optimizer, build_schedule, scale_to_batch

STEPS = 8


def _run(optimizer, gradients):
    params = {"conv": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(2, 2.0)}}
    state = optimizer.init(params)
    for g in gradients:
        grads = jax.tree.map(lambda p, g=g: jnp.full_like(p, g), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params["conv"]


def _caffe(gradients, rates, momentum, decay, rate_multiplier):
    w, v = 2.0, 0.0
    for g, rate in zip(gradients, rates, strict=True):
        v = momentum * v + rate_multiplier * rate * (g + decay * w)
        w -= v
    return w


def test_sgd_moves_as_caffe_does_across_a_change_of_rate():
    config = OptimizerConfig(
        learning_rate=0.1, momentum=0.9, weight_decay=0.01, milestones=((4, 0.1),)
    )
    gradients = np.random.default_rng(0).normal(size=STEPS)
    rates = [0.1] * 4 + [0.01] * 4
    got = _run(build_optimizer(config, STEPS), gradients)
    kernel = _caffe(gradients, rates, 0.9, decay=0.01, rate_multiplier=1)
    bias = _caffe(gradients, rates, 0.9, decay=0.0, rate_multiplier=2)
    np.testing.assert_allclose(got["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(got["bias"], bias, rtol=1e-5)


def test_sgd_differs_from_optax_only_after_the_rate_changes():
    plain = {"weight_decay": 0.0, "bias_multiplier": 1.0, "milestones": ((4, 0.1),)}
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, **plain)
    theirs = optax.sgd(build_schedule(config, STEPS), momentum=0.9)
    gradients = np.ones(STEPS)
    for count, equal in ((4, True), (STEPS, False)):
        a = _run(build_optimizer(config, STEPS), gradients[:count])["kernel"]
        b = _run(theirs, gradients[:count])["kernel"]
        assert np.allclose(a, b, rtol=1e-5) is equal


def test_multipliers_scale_the_rate_of_their_layers():
    """Caffe's lr_mult 10 and 20 of a classifier's kernel and bias."""
    fields = {"learning_rate": 0.1, "weight_decay": 0.01, "milestones": ((4, 0.1),)}
    gradients = np.random.default_rng(0).normal(size=STEPS)
    rates = [0.1] * 4 + [0.01] * 4
    for pattern, times in (("conv", 10), ("front", 1)):
        config = OptimizerConfig(lr_multipliers=((pattern, 10.0),), **fields)
        got = _run(build_optimizer(config, STEPS), gradients)
        kernel = _caffe(gradients, rates, 0.9, decay=0.01, rate_multiplier=times)
        bias = _caffe(gradients, rates, 0.9, decay=0.0, rate_multiplier=2 * times)
        np.testing.assert_allclose(got["kernel"], kernel, rtol=1e-4)
        np.testing.assert_allclose(got["bias"], bias, rtol=1e-4)


def test_adam_is_optax_adamw_with_decay_on_kernels_only():
    config = OptimizerConfig(
        "adam",
        learning_rate=0.1,
        momentum=0.9,
        beta2=0.99,
        weight_decay=0.01,
        bias_multiplier=1.0,
    )
    mask = {"conv": {"kernel": True, "bias": False}}
    theirs = optax.adamw(0.1, 0.9, 0.99, weight_decay=0.01, mask=mask)
    gradients = np.random.default_rng(0).normal(size=STEPS)
    a, b = _run(build_optimizer(config, STEPS), gradients), _run(theirs, gradients)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6)


def test_clipping_bounds_the_gradient_that_is_followed():
    config = OptimizerConfig(
        learning_rate=1.0, weight_decay=0.0, bias_multiplier=1.0, clip=1.0
    )
    moved = 2.0 - _run(build_optimizer(config, STEPS), [100.0])["kernel"]
    np.testing.assert_allclose(moved, 1 / np.sqrt(5), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (
            {"schedule": "step", "milestones": ((2, 0.1), (4, 0.5))},
            [1, 1, 0.1, 0.1, 0.05],
        ),
        ({"schedule": "poly"}, [(1 - s / 5) ** 0.9 for s in range(5)]),
        ({"schedule": "cosine"}, [(1 + np.cos(np.pi * s / 5)) / 2 for s in range(5)]),
        ({"schedule": "step", "warmup": 4}, [0.25, 0.5, 0.75, 1, 1]),
    ],
)
def test_schedules_have_their_values(fields, wanted):
    schedule = build_schedule(OptimizerConfig(learning_rate=1.0, **fields), 5)
    got = [float(schedule(jnp.int32(step))) for step in range(5)]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "name, batch, factor", [("sgd", 32, 4), ("sgd", 2, 1 / 4), ("adam", 32, 2)]
)
def test_a_rate_follows_the_batch_only_where_it_is_asked_to(name, batch, factor):
    fixed = OptimizerConfig(name, learning_rate=1e-3)
    assert scale_to_batch(fixed, batch) == fixed
    scaled = scale_to_batch(
        OptimizerConfig(name, learning_rate=1e-3, base_batch_size=8), batch
    )
    assert scaled.learning_rate == pytest.approx(1e-3 * factor)
