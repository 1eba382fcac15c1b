"""The heads that benchmarks/duc.py compares give scores of the same pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import duc
from dilax.ops import upsample_bilinear

HEADS = duc.heads(features=6, classes=3)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_scores_at_every_pixel(name):
    head, params = HEADS[name]
    x = jnp.ones((1, 5, 4, 6))
    assert head(params, x).shape == (1, 40, 32, 3)
    by_params, by_x = duc.gradient(head)(params, x)
    assert by_x.shape == x.shape
    assert all(bool((leaf != 0).any()) for leaf in by_params.values())


def test_the_transposed_convolution_with_a_bilinear_kernel_is_bilinear_upsampling():
    head, params = HEADS["transposed convolution ×8"]
    ramp = 1 - np.abs(np.arange(16) - 7.5) / 8
    kernel = np.einsum("i,j,ab->ijab", ramp, ramp, np.eye(3))
    params = {**params, "up": jnp.asarray(kernel, jnp.float32)}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 6)), jnp.float32)
    bilinear, _ = HEADS["bilinear ×8"]
    np.testing.assert_allclose(head(params, x), bilinear(params, x), atol=1e-5)
    assert upsample_bilinear(x, 8, "centred").shape == (1, 40, 32, 6)


def test_the_table_has_a_row_for_each_head_and_bilinear_upsampling_is_1():
    table = duc.rows(side=3, features=4, classes=2, repeats=1)
    assert [row[0] for row in table] == list(HEADS)
    assert (table[0][3], table[0][5]) == ("1.0", "1.0")
    assert float(table[0][2]) > 0
