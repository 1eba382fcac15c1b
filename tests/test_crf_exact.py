"""The exact filter: a double loop, finite differences, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_scenes import gaussian_sums
from jax.test_util import check_grads

from dilax.crf import ExactFilter, gaussian_filter
from dilax.runtime import jit

BLOCKS = [(256, 1024), (4, 3), (7, 5), (1, 50)]


def _draw(n=23, d=3, k=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * 1.5, rng.normal(size=(n, k))


@pytest.mark.parametrize("rows, columns", BLOCKS)
def test_agrees_with_a_double_loop(rows, columns):
    features, values = _draw()
    with jax.enable_x64(True):
        filter = ExactFilter(jnp.asarray(features), None, rows, columns)
        out = np.asarray(filter(jnp.asarray(values)))
    np.testing.assert_allclose(out, gaussian_sums(features, values), atol=1e-12)


def test_float32_keeps_six_digits_far_from_the_origin():
    features, values = _draw()
    features = np.float32(features + 150)
    out = ExactFilter(jnp.asarray(features))(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(out, gaussian_sums(features, values), atol=2e-6)


@pytest.mark.parametrize("rows, columns", BLOCKS)
def test_points_that_do_not_count_give_and_get_nothing(rows, columns):
    features, values = _draw()
    valid = np.arange(len(values)) % 3 > 0
    features, values = np.float32(features), np.float32(values)
    values[~valid] = np.nan
    out = ExactFilter(jnp.asarray(features), jnp.asarray(valid), rows, columns)(
        jnp.asarray(values)
    )
    expected = gaussian_sums(features[valid], values[valid])
    np.testing.assert_allclose(out[valid], expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(out)[~valid].any()


@pytest.mark.parametrize("valid", [False, True])
def test_gradients_pass_finite_differences(valid):
    features, values = _draw(11)
    with jax.enable_x64(True):
        mask = jnp.arange(11) % 4 > 0 if valid else None

        def loss(features, values):
            filter = ExactFilter(jnp.asarray(features), mask, 4, 3)
            return jnp.sum(filter(jnp.asarray(values)) ** 3)

        points = jnp.asarray(features), jnp.asarray(values)
        check_grads(loss, points, 1, ["rev"], atol=1e-5, rtol=1e-5)


def test_transpose_is_the_filter_itself():
    features, values = (jnp.asarray(x, jnp.float32) for x in _draw())
    filter = ExactFilter(features, None, 4, 3)
    _, pull = jax.vjp(filter, values)
    np.testing.assert_allclose(pull(values)[0], filter(values), rtol=1e-6)


def test_memory_grows_with_points_and_not_with_pairs():
    n = 20_000  # all pairs would be 1.6 GB

    def slopes(features, values):
        return jax.grad(lambda f, v: jnp.sum(ExactFilter(f)(v) ** 2), (0, 1))(
            features, values
        )

    compiled = jit(slopes).lower(jnp.ones((n, 5)), jnp.ones((n, 4))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6


def test_a_batch_is_mapped_one_by_one():
    draws = [_draw(seed=s) for s in range(3)]
    features, values = (np.float32(x) for x in zip(*draws, strict=True))
    out = jax.vmap(lambda f, v: ExactFilter(f, None, 4, 3)(v))(features, values)
    for one, f, v in zip(out, features, values, strict=True):
        np.testing.assert_allclose(one, gaussian_sums(f, v), rtol=1e-5, atol=1e-5)


def test_the_one_function_takes_the_exact_filter():
    features, values = (jnp.asarray(x, jnp.float32) for x in _draw())
    out = gaussian_filter(values, features, method="exact")
    expected = gaussian_sums(features, values)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_unknown_methods_and_uneven_points_are_refused(unchecked):
    with pytest.raises(ValueError, match="method='fast' is not among"):
        gaussian_filter(jnp.ones((2, 1)), jnp.ones((2, 1)), method="fast")
    with pytest.raises(ValueError, match="3 values and 2 features"):
        gaussian_filter(jnp.ones((3, 1)), jnp.ones((2, 1)))
