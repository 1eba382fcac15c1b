import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.datasets import DATASETS
from dilax.ops import jit
from dilax.training.losses import class_weights, count_valid, cross_entropy_sum


def _reference(logits, labels, weights=None):
    z = np.asarray(logits, np.float64)
    total = 0.0
    for row, y in zip(z.reshape(-1, z.shape[-1]), labels.ravel(), strict=True):
        if y != 255:
            shifted = row - row.max()
            one = np.log(np.exp(shifted).sum()) - shifted[y]
            total += one * (1 if weights is None else weights[y])
    return total


@pytest.mark.parametrize("weights", [None, jnp.array([0.5, 1.0, 2.0, 0.1])])
def test_sum_is_that_of_the_definition(weights):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (2, 5, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 5, 6)).astype(np.uint8)
    labels[0, :2] = 255
    got = jit(lambda z, y: cross_entropy_sum(z, y, 255, weights))(logits, labels)
    np.testing.assert_allclose(got, _reference(logits, labels, weights), rtol=1e-6)
    assert count_valid(jnp.asarray(labels), 255) == 2 * 5 * 6 - 12


def test_ignored_pixels_have_no_gradient_and_others_softmax_minus_label():
    labels = jnp.array([[[1, 255]]], jnp.uint8)
    logits = jnp.zeros((1, 1, 2, 4)).at[..., 2].set(3.0)
    gradient = jax.grad(lambda z: cross_entropy_sum(z, labels, 255))(logits)
    wanted = jax.nn.softmax(logits[0, 0, 0]) - jnp.array([0, 1, 0, 0])
    np.testing.assert_allclose(gradient[0, 0, 0], wanted, atol=1e-6)
    np.testing.assert_array_equal(gradient[0, 0, 1], 0)


def test_nothing_valid_gives_zero_loss_and_a_divisor_of_one():
    labels = jnp.full((1, 2, 2), 255, jnp.uint8)
    assert cross_entropy_sum(jnp.ones((1, 2, 2, 3)), labels, 255) == 0
    assert count_valid(labels, 255) == 1


def test_sum_over_millions_of_pixels_keeps_float_accuracy():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (4, 700, 700, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (4, 700, 700)).astype(np.uint8)
    z = logits.astype(np.float64)
    gap = np.where(labels == 0, z[..., 1] - z[..., 0], z[..., 0] - z[..., 1])
    exact = np.logaddexp(0, gap).sum()
    got = jit(lambda z, y: cross_entropy_sum(z, y, 255))(logits, labels)
    assert abs(float(got) / exact - 1) < 1e-6


def test_class_weights_follow_the_power_of_frequency_with_mean_one():
    spec = DATASETS["camvid"]
    label = np.full((10, 10), 255, np.uint8)
    label[:8] = 0
    label[8, :5] = 3
    source = [{"label": label}] * 3
    weights = class_weights(source, spec, power=0.5)
    assert weights[3] / weights[0] == pytest.approx((80 / 5) ** 0.5)
    assert (80 * weights[0] + 5 * weights[3]) / 85 == pytest.approx(1)
    np.testing.assert_array_equal(class_weights(source, spec, 0.0), 1)
    assert np.isfinite(class_weights(source, spec, 1.0)).all()
