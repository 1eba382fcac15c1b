import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dilax.ops import dilated_conv
from dilax.ops.pooling import windows
from dilax.runtime import jit

SIZES = [(9, 12), (8, 7), (1, 5)]


def _maps(size, channels=3):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side, stride", [(3, 2), (3, 4), (3, 8), (1, 2), (7, 2)])
def test_a_strided_convolution_and_its_gradients_are_laxs(size, side, stride):
    rng = np.random.default_rng(1)
    x = _maps(size)
    kernel = jnp.asarray(rng.normal(size=(side, side, 3, 4)), jnp.float32)
    half = side // 2

    def wanted(x, kernel):
        y = lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((half, half),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y[:, ::stride, ::stride]

    def ours(x, kernel):
        return dilated_conv(x, kernel, stride=stride, padding="same")

    y = jit(ours)(x, kernel)
    np.testing.assert_allclose(y, wanted(x, kernel), atol=1e-4)
    weights = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    pairs = (
        jax.grad(lambda x, k, f=f: (weights * f(x, k)).sum(), argnums=(0, 1))(x, kernel)
        for f in (ours, wanted)
    )
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side, stride, before", [(2, None, 0), (3, 2, 1), (3, 1, 1)])
def test_windows_are_the_cells_around_each_stride(size, side, stride, before):
    x, found = _maps(size), windows(_maps(size), side, stride, before, 7.0)
    stride = stride or side
    for place, cells in enumerate(found):
        assert cells.shape[1:3] == tuple(-(-n // stride) for n in size)
        for i in range(cells.shape[1]):
            for j in range(cells.shape[2]):
                y = i * stride - before + place // side
                z = j * stride - before + place % side
                inside = 0 <= y < size[0] and 0 <= z < size[1]
                np.testing.assert_array_equal(
                    cells[:, i, j], x[:, y, z] if inside else 7
                )
