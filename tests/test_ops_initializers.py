"""Identity initialisation: Eq. 4 and Eq. 5 as loops, the noise, and what a stack does.

That a whole context module returns max(0, x) stands in test_models.py.
"""

import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.ops import identity_init

KEY = jax.random.key(0)


def _eq_5(side, groups, c_in, c_out):
    """The kernels without noise, entry by entry from the paper's formula."""
    kernel = np.zeros((side, side, c_in, c_out))
    for a, b in itertools.product(range(c_in), range(c_out)):
        group_in = math.floor(Fraction(a * groups, c_in))
        group_out = math.floor(Fraction(b * groups, c_out))
        if group_in == group_out:
            kernel[side // 2, side // 2, a, b] = groups / c_out
    return kernel


@pytest.mark.parametrize("groups", [1, 2, 5, 21])
def test_equal_channels_give_eq_4_the_identity_at_the_centre(groups):
    kernel = identity_init(groups)(KEY, (3, 3, groups, groups))
    expected = np.zeros((3, 3, groups, groups))
    expected[1, 1] = np.eye(groups)
    np.testing.assert_array_equal(kernel, expected)


@pytest.mark.parametrize(
    "multipliers",
    [(1, 2), (2, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 32), (32, 1), (3, 2)],
)
@pytest.mark.parametrize("groups", [3, 7])
def test_every_entry_follows_eq_5(groups, multipliers):
    c_in, c_out = (groups * m for m in multipliers)
    kernel = identity_init(groups)(KEY, (3, 3, c_in, c_out))
    np.testing.assert_allclose(kernel, _eq_5(3, groups, c_in, c_out), rtol=1e-7)


@pytest.mark.parametrize("side", [1, 5])
def test_the_centre_tap_is_the_middle_of_any_odd_kernel(side):
    kernel = identity_init(2)(KEY, (side, side, 4, 2))
    np.testing.assert_array_equal(kernel, _eq_5(side, 2, 4, 2))


@pytest.mark.parametrize("widths", [(3, 3, 3), (3, 6, 12, 96, 3), (3, 6, 9, 3)])
def test_the_gain_of_a_stack_telescopes_to_one(widths):
    init = identity_init(3)
    shapes = [(3, 3, *pair) for pair in itertools.pairwise(widths)]
    centres = [np.asarray(init(KEY, shape))[1, 1] for shape in shapes]
    gain = functools.reduce(np.matmul, centres)
    np.testing.assert_allclose(gain, np.eye(3), atol=1e-6)


SHAPE, MATCHING = (3, 3, 64, 64), _eq_5(3, 4, 64, 64) != 0


def test_noise_has_the_asked_deviation_and_spares_the_matching_centre_taps():
    kernel = np.asarray(identity_init(4, sigma=0.02)(KEY, SHAPE))
    assert (kernel[MATCHING] == 4 / 64).all()
    noise = kernel[~MATCHING]
    assert (noise != 0).mean() > 0.999
    assert abs(noise.std() / 0.02 - 1) < 0.03
    assert abs(noise.mean()) < 5 * 0.02 / math.sqrt(noise.size)
    beyond = (np.abs(noise) > 0.02).mean()
    assert abs(beyond - math.erfc(math.sqrt(0.5))) < 0.02  # normal: 31.7 % beyond σ


def test_the_key_decides_the_noise():
    init = identity_init(2, 0.1)
    one, again = init(KEY, (3, 3, 2, 4)), init(KEY, (3, 3, 2, 4))
    np.testing.assert_array_equal(one, again)
    other = init(jax.random.key(1), (3, 3, 2, 4))
    assert (np.asarray(one) != np.asarray(other)).sum() == 3 * 3 * 2 * 4 - 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_kernels_have_the_asked_dtype(dtype, sigma):
    assert identity_init(2, sigma)(KEY, (3, 3, 2, 4), dtype).dtype == dtype


@pytest.mark.parametrize("c_in, c_out", [(7, 6), (6, 7)])
def test_channels_that_are_no_multiples_of_the_groups_are_refused(c_in, c_out):
    message = f"{c_in} -> {c_out} channels are not both multiples of groups=3"
    with pytest.raises(ValueError, match=message):
        identity_init(3)(KEY, (3, 3, c_in, c_out))


@pytest.mark.parametrize("sides", [(2, 3), (3, 4)])
def test_kernels_without_a_centre_are_refused(sides):
    with pytest.raises(ValueError, match="{}x{} kernel has no centre".format(*sides)):
        identity_init(3)(KEY, (*sides, 3, 3))
