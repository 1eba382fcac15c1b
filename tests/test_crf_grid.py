"""The separable filter of a grid: the exact filter is its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_scenes import gaussian_sums

from dilax.crf import ExactFilter, GridFilter
from dilax.crf.filters import cut_radius
from dilax.crf.kernels import normalize, spatial_features
from dilax.runtime import jit


def _draw(height, width, k=2):
    values = np.random.default_rng(0).random((height * width, k))
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (9, 1), (5, 7)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 30.0])
def test_agrees_with_a_double_loop(sides, sigma):
    values = _draw(*sides)
    out = GridFilter(jnp.float32(sigma), None, *sides)(values)
    y, x = np.divmod(np.arange(len(values)), sides[1])
    expected = gaussian_sums(np.stack([x, y], 1) / sigma, values)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("sides", [(37, 41), (32, 64), (33, 20), (100, 9)])
@pytest.mark.parametrize("radius", [5, 8, 64, None])
def test_cut_at_five_bandwidths_differs_by_what_was_left_out(sides, radius):
    values = _draw(*sides)
    exact = ExactFilter(spatial_features(*sides, 1.0))(values)
    out = GridFilter(jnp.float32(1.0), None, *sides, radius)(values)
    np.testing.assert_allclose(out, exact, rtol=3e-6)


def test_cutting_leaves_out_what_the_docstring_says():
    values = jnp.ones((101, 1))
    exact = GridFilter(jnp.float32(3.0), None, 101, 1)(values)[50, 0]
    cut = GridFilter(jnp.float32(3.0), None, 101, 1, radius=6)(values)[50, 0]
    taps = np.exp(-0.5 * (np.arange(-6, 7) / 3) ** 2).sum()
    np.testing.assert_allclose([exact, cut], [3 * np.sqrt(2 * np.pi), taps], rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0, 3.3, 50.0])
def test_radii_reach_five_bandwidths_and_are_few(sigma):
    radius = cut_radius(sigma)
    assert radius >= 5 * sigma
    assert np.log2(radius).is_integer()


@pytest.mark.parametrize("radius", [2, None])
def test_padding_gives_nothing(radius):
    values = _draw(9, 12)
    inside = np.zeros((9, 12), bool)
    inside[:7, :11] = True
    noisy = jnp.where(jnp.asarray(inside.ravel())[:, None], values, jnp.nan)
    sigma, valid = jnp.float32(0.4), jnp.asarray(inside.ravel())
    padded = GridFilter(sigma, valid, 9, 12, radius)(noisy).reshape(9, 12, 2)
    inner = values.reshape(9, 12, 2)[:7, :11].reshape(-1, 2)
    alone = GridFilter(sigma, None, 7, 11, radius)(inner).reshape(7, 11, 2)
    np.testing.assert_allclose(padded[:7, :11], alone, rtol=1e-6)


def test_transpose_is_the_filter_itself():
    values = _draw(20, 18)
    filter = GridFilter(jnp.float32(1.0), None, 20, 18, 4)
    _, pull = jax.vjp(filter, values)
    np.testing.assert_allclose(pull(values)[0], filter(values), rtol=1e-6)


def test_sums_of_ones_are_the_same_compiled_with_our_options():
    """XLA's CPU backend multiplies by constant ones wrongly with one of them."""

    def weights():
        filter = GridFilter(jnp.float32(1.5), None, 12, 16)
        return normalize(filter, "after", 12 * 16).after

    np.testing.assert_allclose(jit(weights)(), weights(), rtol=1e-5)
