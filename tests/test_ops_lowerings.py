"""The lowerings of a dilated convolution agree, in value and gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dilax.ops import dilated_conv
from dilax.ops.lowerings import (
    DIRECT,
    LOWERINGS,
    NO_PADDING,
    Choice,
    choose,
    convolve,
    input_gradient,
    kernel_gradient,
)
from dilax.runtime import jit

OTHERS = [way for way in LOWERINGS if way != "direct"]
SHAPES = [  # (x, kernel, dilation): odd and even sizes, maps just as large as kernels
    ((2, 13, 18, 3), (3, 5, 3, 4), 1),
    ((2, 13, 17, 3), (3, 3, 3, 4), 2),
    ((1, 25, 26, 2), (7, 7, 2, 5), 4),
    ((1, 9, 9, 4), (3, 3, 4, 2), 4),
    ((1, 6, 7, 3), (1, 1, 3, 8), 1),
    ((3, 8, 9, 2), (2, 4, 2, 3), 2),
]


def _draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _like(a):
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _assert_close(ours, theirs, rtol):
    ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * abs(theirs).max())


@pytest.mark.parametrize("x, kernel, dilation", SHAPES, ids=str)
@pytest.mark.parametrize("lowering", OTHERS)
def test_value_and_gradients_agree_with_direct(lowering, x, kernel, dilation):
    x, kernel = _draw(*x), _draw(*kernel, seed=1)
    _assert_passes_agree(x, kernel, dilation, lowering)


# Both alike in every phase of a dilation of 2, or not.
@pytest.mark.parametrize("widths", [((2, 2), (4, 2)), ((1, 0), (0, 3))], ids=str)
@pytest.mark.parametrize("lowering", OTHERS)
def test_padding_is_part_of_every_lowering(lowering, widths):
    x, kernel = _draw(2, 13, 17, 3), _draw(3, 3, 3, 4, seed=1)
    padded = jnp.pad(x, ((0, 0), *widths, (0, 0)))
    expected = convolve(padded, kernel, 2, "direct")
    _assert_close(convolve(x, kernel, 2, "direct", widths), expected, 1e-5)
    _assert_passes_agree(x, kernel, 2, lowering, widths)


def _assert_passes_agree(x, kernel, dilation, lowering, widths=NO_PADDING):
    expected = convolve(x, kernel, dilation, "direct", widths)
    gradient = _draw(*expected.shape, seed=2)

    @functools.partial(jit, static_argnums=0)
    def passes(way):
        return (
            convolve(x, kernel, dilation, way, widths),
            input_gradient(gradient, kernel, _like(x), dilation, way, widths),
            kernel_gradient(x, gradient, _like(kernel), dilation, way, widths),
        )

    for ours, theirs in zip(passes(lowering), passes("direct"), strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        _assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_gradients_on_accelerators_leave_padding_out(backend, monkeypatch):
    x, kernel = _draw(1, 8, 12, 3), _draw(3, 3, 3, 3)

    def loss(x, kernel):
        return (dilated_conv(x, kernel, dilation=4, padding="same") ** 2).sum()

    expected = jax.grad(loss, (0, 1))(x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    step = jax.grad(loss, (0, 1))
    assert "pad[" not in str(jax.make_jaxpr(step)(x, kernel))
    for ours, theirs in zip(step(x, kernel), expected, strict=True):
        _assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_gradients_of_dilated_conv_are_those_of_finite_differences(lowering):
    with jax.enable_x64(True):
        x, kernel = _draw(1, 9, 10, 2, dtype=float), _draw(3, 3, 2, 3, dtype=float)

        def loss(x, kernel):
            x, kernel = jnp.asarray(x), jnp.asarray(kernel)
            y = dilated_conv(x, kernel, dilation=2, padding=1, lowering=lowering)
            return jnp.sin(y).sum()

        check_grads(jax.jit(loss), (x, kernel), 1, modes="rev", rtol=1e-6)


@pytest.mark.parametrize("taps", [3, 7])
def test_winograd_is_as_accurate_as_direct_in_float32(taps):
    x, kernel = jax.nn.relu(_draw(1, 24, 24, 256)), _draw(taps, taps, 256, 8, seed=1)
    with jax.enable_x64(True):
        wide = jnp.asarray(x, float), jnp.asarray(kernel, float)
        exact = np.asarray(convolve(*wide, 2, "direct"))
    errors = {
        way: abs(np.asarray(convolve(x, kernel, 2, way)) - exact).max() / exact.std()
        for way in ("direct", "winograd")
    }
    assert errors["winograd"] < 5e-6
    assert errors["direct"] < 5e-6


@pytest.mark.parametrize("taps", [3, 7])
def test_winograd_of_bfloat16_rounds_transforms_where_no_gradients_follow(taps):
    x, kernel = _draw(1, 24, 24, 128), _draw(taps, taps, 128, 128, seed=1)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
    exact = np.asarray(convolve(*wide, 2, "direct"))
    alone = functools.partial(convolve, dilation=2, lowering="winograd", alone=True)
    y = jit(alone)(x, kernel)
    assert y.dtype == jnp.bfloat16
    error = np.asarray(y, np.float32) - exact
    assert np.sqrt((error**2).mean()) < 0.01 * exact.std()  # direct: 0.0017
    precise = jit(convolve, static_argnums=(2, 3))(x, kernel, 2, "winograd")
    error = np.asarray(precise, np.float32) - exact
    assert np.sqrt((error**2).mean()) < 0.003 * exact.std()


@pytest.mark.parametrize("lowering", OTHERS)
def test_bfloat16_products_are_summed_in_float32(lowering):
    # 4096 ones and small terms: a sum in bfloat16 would stop at 256.
    x = jnp.ones((1, 5, 6, 4096), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 4096, 1), jnp.bfloat16)
    y = jit(lambda x, k: dilated_conv(x, k, lowering=lowering))(x, kernel)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), 9 * 4096)


def test_each_pass_takes_its_own_lowering():
    def lowered(choice):
        def loss(x, kernel):
            return dilated_conv(x, kernel, dilation=2, lowering=choice).sum()

        fun = jax.jit(jax.grad(loss, argnums=(0, 1)))
        text = fun.lower(_draw(1, 20, 20, 3), _draw(3, 3, 3, 4)).as_text()
        return [text.count(f"stablehlo.{op}") for op in ("convolution", "dot_general")]

    assert lowered(DIRECT) == [2, 0]  # the output itself is not needed
    assert lowered(Choice("direct", "rows", "phases")) == [1, 3]
    assert lowered(Choice("direct", "direct", "taps")) == [1, 9]
    assert lowered(Choice("direct", "patches", "taps")) == [0, 10]


def test_under_vmap_all_lowerings_agree():
    x, kernel = _draw(3, 2, 9, 8, 2), _draw(3, 3, 3, 2, 4, seed=1)
    conv = jax.vmap(dilated_conv)
    expected = conv(x, kernel)
    for lowering in LOWERINGS:
        ours = jit(
            jax.vmap(lambda x, k, way=lowering: dilated_conv(x, k, lowering=way))
        )
        _assert_close(ours(x, kernel), expected, 1e-5)


def test_direct_has_forward_derivatives():
    x, kernel = _draw(1, 9, 9, 2), _draw(3, 3, 2, 3)
    conv = lambda x: dilated_conv(x, kernel, dilation=2, lowering="direct")  # noqa: E731
    _, tangent = jax.jvp(conv, (x,), (x,))
    _assert_close(tangent, conv(x), 1e-5)


@pytest.mark.parametrize("lowering", ["fft", Choice("taps", "direct", "none")])
def test_other_lowerings_are_refused_with_those_there_are(unchecked, lowering):
    with pytest.raises(ValueError, match=r"lowering=.* is not among \('direct', "):
        dilated_conv(_draw(1, 9, 9, 2), _draw(3, 3, 2, 3), lowering=lowering)


def _choice(x, kernel, dilation=1, dtype=jnp.float32, backend="cpu"):
    return choose(x, kernel, dilation, dtype, backend)


def test_what_was_not_measured_is_direct_and_in_phases_on_a_gpu_where_dilated():
    shapes = (1, 90, 90, 512), (7, 7, 512, 64)
    assert _choice(*shapes, 4, backend="tpu") == DIRECT
    assert _choice(*shapes, 1, jnp.float16, "gpu") == DIRECT
    assert _choice(*shapes, 4, jnp.float16, "gpu") == Choice(*["phases"] * 3)


def test_on_a_cpu_many_channels_take_winograd_and_few_are_direct():
    fc6 = _choice((1, 56, 56, 512), (7, 7, 512, 4096), 4)
    assert (fc6.forward, fc6.input) == ("winograd", "patches")
    assert _choice((1, 94, 94, 512), (3, 3, 512, 512), 2)[:2] == ("winograd",) * 2
    assert _choice((1, 626, 626, 16), (3, 3, 16, 16))[:2] == ("direct",) * 2
    assert _choice((1, 898, 898, 64), (3, 3, 64, 64))[:2] == ("direct",) * 2
    assert _choice((1, 32, 32, 4096), (1, 1, 4096, 4096)) == Choice(*["taps"] * 3)
    assert _choice((4, 626, 626, 16), (3, 3, 16, 16)).kernel == "examples"
    assert _choice((60, 70, 70, 21), (3, 3, 21, 21), 2).kernel == "direct"


def test_free_sizes_are_direct():
    (h,) = jax.export.symbolic_shape("h")
    assert _choice((1, h, 90, 512), (3, 3, 512, 64)) == DIRECT


def test_small_convolutions_are_direct():
    large, small = (_choice((1, n, n, 512), (3, 3, 512, 512)) for n in (66, 4))
    assert large != DIRECT
    assert small == DIRECT


def test_no_choice_lays_out_more_than_a_quarter_of_a_gibibyte():
    kernels = [(7, 7, 512, 4096), (3, 3, 64, 64), (3, 3, 3, 64)]
    dtypes = jnp.float32, jnp.bfloat16
    for kernel, dtype, batch in itertools.product(kernels, dtypes, (1, 8)):
        side = 900
        x = (batch, side, side, kernel[2])
        one = batch * (side - kernel[0] + 1) ** 2 * kernel[2] * np.dtype(dtype).itemsize
        copies = {"patches": kernel[0] * kernel[1], "rows": kernel[1]}
        for way in _choice(x, kernel, 1, dtype):
            assert copies.get(way, 0) * one <= 2**28
