"""Maps spread by rows over eight devices: the same numbers as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from dilax.ops import dilated_conv, max_pool, upsample_bilinear
from dilax.ops.dilated_conv import pad_maps
from dilax.runtime import jit
from dilax.runtime.row_shards import RowShards, row_shards

MESH = Mesh(np.array(jax.devices()).reshape(1, 8), ("data", "rows"))
MIXED = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "rows"))


def _random(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _spread(function, mesh, stride=1):
    """function(x, …) of rows on several devices; only what means something."""

    def run(x, *rest):
        shards = RowShards(mesh)
        with row_shards(shards):
            out = function(shards.spread(x, stride), *rest)
            return out[:, : shards.height(out)]

    return run


def _assert_agree(function, *arrays, mesh=MESH, stride=1):
    """Values and the gradients of a weighted sum, by every argument."""

    def weighted(run):
        def total(*arrays):
            out = run(*arrays)
            weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
            return (out * weights).sum(), out

        arguments = tuple(range(len(arrays)))
        return jit(jax.value_and_grad(total, arguments, has_aux=True))(*arrays)

    (_, value), gradients = weighted(_spread(function, mesh, stride))
    (_, expected), wanted = weighted(function)
    assert value.shape == expected.shape
    for ours, theirs in zip(
        jax.tree.leaves((value, gradients)),
        jax.tree.leaves((expected, wanted)),
        strict=True,
    ):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 1e-5


@pytest.mark.parametrize("padding", ["valid", "same", "reflect", ((3, 1), (1, 3))])
@pytest.mark.parametrize("dilation, mesh", [(1, MESH), (2, MIXED), (5, MESH)])
def test_a_convolution_is_the_same(padding, dilation, mesh):
    def conv(x, kernel):
        return dilated_conv(x, kernel, dilation=dilation, padding=padding)

    _assert_agree(conv, _random(2, 27, 13, 3), _random(3, 3, 3, 4), mesh=mesh)


@pytest.mark.parametrize("padding", ["same", ((64, 64), (64, 64))])
@pytest.mark.parametrize("dilation", [32, 64])
def test_dilations_reach_over_several_devices(dilation, padding):
    def conv(x, kernel):
        return dilated_conv(x, kernel, dilation=dilation, padding=padding)

    _assert_agree(conv, _random(1, 66, 10, 2), _random(3, 3, 2, 2))


@pytest.mark.parametrize("lowering", ["phases", "pairs", "winograd", "taps", "patches"])
def test_whatever_the_lowering(lowering):
    def conv(x, kernel):
        return dilated_conv(x, kernel, dilation=2, lowering=lowering)

    _assert_agree(conv, _random(1, 40, 12, 4), _random(3, 3, 4, 4))


@pytest.mark.parametrize(
    "height, padding", [(32, "valid"), (37, "valid"), (33, "reflect")]
)
def test_pools_and_convolutions_stay_aligned(height, padding):
    def stack(x, first, second):
        x = max_pool(dilated_conv(x, first, padding=padding))
        return max_pool(dilated_conv(x, second, dilation=2, padding=padding))

    arrays = _random(1, height, 30, 3), _random(3, 3, 3, 4), _random(3, 3, 4, 2)
    _assert_agree(stack, *arrays, stride=4)


@pytest.mark.parametrize("convention", ["top_left", "centred"])
@pytest.mark.parametrize("height", [16, 21])
def test_upsampling_is_the_same(height, convention):
    def enlarged(x):
        return upsample_bilinear(x, 4, convention)

    _assert_agree(enlarged, _random(1, height, 9, 3))


@pytest.mark.parametrize("border", ["zero", "reflect"])
def test_padding_once_on_entry_is_the_same(border):
    def entry(x, kernel):
        x = pad_maps(x, ((9, 9), (9, 9)), border)
        return dilated_conv(dilated_conv(x, kernel, dilation=8), kernel)

    _assert_agree(entry, _random(1, 19, 17, 2), _random(3, 3, 2, 2))


def test_every_device_holds_its_share_only():
    shards = RowShards(MESH)

    def run(x, kernel):
        with row_shards(shards):
            return dilated_conv(shards.spread(x), kernel, dilation=2, padding="same")

    out = jit(run)(_random(1, 61, 12, 3), _random(3, 3, 3, 4))
    assert {shard.data.shape for shard in out.addressable_shards} == {(1, 8, 12, 4)}
    assert shards.height(out) == 61


def test_maps_of_other_networks_are_refused():
    shards = RowShards(MESH)
    with pytest.raises(ValueError, match="7x5: are not divided by rows"):
        shards.height(jnp.zeros((1, 7, 5, 1)))
