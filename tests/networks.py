"""The released networks as their definitions say, and what tests of models share."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.models import (
    Layer,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from dilax.runtime import jit

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default
SLIM = {"width_multiplier": 1 / 16, "head_channels": 8}
TINY = (
    Layer("conv1", 3, 8),
    Layer("pool1", 2),
    Layer("conv2", 3, 8, dilation=2),
    Layer("head", 1, 8, dropout=0.5),
)


class Release(NamedTuple):
    """A released network: what its definition says, and a twin is built from."""

    build: object
    classes: int
    final: str
    prefix: str
    dilations: dict[str, int]
    entry: int = 0
    upsample: bool = False


_SEVEN = {"conv1_1": 1, "conv1_2": 1, "conv2_1": 2, "conv3_1": 4, "conv4_1": 8}
_EIGHT = _SEVEN | {"conv5_1": 16}
_TEN = _EIGHT | {"conv6_1": 32, "conv7_1": 64}
_CLOSE = {"fc1": 1}
RELEASES = [
    Release(dilation8_voc, 21, "fc-final", "ct_", _EIGHT | _CLOSE, entry=33),
    Release(dilation8_camvid, 11, "final", "ctx_", _EIGHT | _CLOSE),
    Release(dilation7_kitti, 11, "final", "ctx_", _SEVEN | _CLOSE),
    Release(dilation10_cityscapes, 19, "final", "ctx_", _TEN | _CLOSE, upsample=True),
]
VGG_NAMES = [
    *("conv1_1", "conv1_2"),
    *("conv2_1", "conv2_2"),
    *("conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3"),
    *("conv5_1", "conv5_2", "conv5_3"),
    *("fc6", "fc7"),
]

each_release = pytest.mark.parametrize(
    "release", RELEASES, ids=[release.build.__name__ for release in RELEASES]
)


def image(h, w, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(1, h, w, channels)), jnp.float32)


def init_shapes(model, x):
    return jax.eval_shape(model.init, KEY, x)["params"]


def random_params(model, x, seed=0):
    """Weights that keep the signal alive, also where only centre taps see the map."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            values *= math.sqrt(2 / math.prod(leaf.shape[:-1]))
            values[leaf.shape[0] // 2, leaf.shape[1] // 2] *= leaf.shape[0]
        else:
            values = 0.2 * np.abs(values) + (path[-1].key in ("scale", "var"))
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, init_shapes(model, x))


def apply(model, params, x, **kwargs):
    return np.asarray(
        jit(lambda p, x: model.apply({"params": p}, x, **kwargs))(params, x)
    )


def out_shape(model, *shape):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(KEY, x)[0], x).shape


def assert_close(one, other, tolerance=1e-4):
    """Asserts that maps agree, and that there is something on them."""
    other = np.asarray(other)
    size = np.abs(other).max()
    assert np.ptp(other, axis=(1, 2)).max() > 0.02 * size > 0
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * size)
