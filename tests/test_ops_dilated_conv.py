"""Dilated convolution: Eq. 2 as loops, PyTorch, and what is never built."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.ops import dilated_conv
from dilax.ops.dilated_conv import pad_maps
from dilax.runtime import jit


def _draw(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


X, KERNEL = _draw(2, 13, 17, 3), _draw(3, 5, 3, 4, seed=1)


def _eq_2(signal, kernel, dilation):
    """(F *_l k)(p) = Σ_{s + l·t = p} F(s) k(t), t from −r to r, F zero outside."""
    result = np.zeros_like(signal)
    radius = len(kernel) // 2
    taps = range(-radius, radius + 1)
    cells = itertools.product(*map(range, signal.shape))
    for (py, px), ty, tx in itertools.product(cells, taps, taps):
        sy, sx = py - dilation * ty, px - dilation * tx
        if 0 <= sy < signal.shape[0] and 0 <= sx < signal.shape[1]:
            result[py, px] += signal[sy, sx] * kernel[ty + radius, tx + radius]
    return result


@pytest.mark.parametrize("side, dilation", [(3, 1), (3, 3), (5, 2)])
def test_eq_2_is_dilated_conv_with_the_kernel_turned_by_180_degrees(side, dilation):
    signal, kernel = _draw(7, 9), _draw(side, side, seed=1)
    x, turned = signal[None, ..., None], kernel[::-1, ::-1, None, None]
    ours = dilated_conv(x, turned, dilation=dilation, padding="same")
    expected = _eq_2(np.asarray(signal), np.asarray(kernel), dilation)
    np.testing.assert_allclose(ours[0, ..., 0], expected, rtol=1e-5, atol=1e-5)


def _torch_conv(torch, x, kernel, dilation, mode, pad):
    """Value, and what pulls a cotangent back to x and kernel; all NHWC and HWIO."""
    x, kernel = (torch.tensor(np.array(a), requires_grad=True) for a in (x, kernel))
    padded = torch.nn.functional.pad(x.permute(0, 3, 1, 2), pad, mode=mode)
    weight = kernel.permute(3, 2, 0, 1)
    y = torch.nn.functional.conv2d(padded, weight, dilation=dilation)
    y = y.permute(0, 2, 3, 1)

    def pull(cotangent):
        y.backward(torch.tensor(cotangent))
        return x.grad.numpy(), kernel.grad.numpy()

    return y.detach().numpy(), pull


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize(
    "padding, mode, pad",  # pad: left, right, top, bottom for a dilation
    [
        ("valid", "constant", lambda dilation: (0, 0, 0, 0)),
        ("same", "constant", lambda dilation: [dilation * n for n in (2, 2, 1, 1)]),
        ("reflect", "reflect", lambda dilation: [dilation * n for n in (2, 2, 1, 1)]),
        (3, "constant", lambda dilation: (3, 3, 3, 3)),
        (((1, 2), (0, 4)), "constant", lambda dilation: (0, 4, 1, 2)),
    ],
    ids=["valid", "same", "reflect", "int", "pairs"],
)
def test_value_and_both_gradients_equal_torch(torch, padding, mode, pad, dilation):
    value, pull = _torch_conv(torch, X, KERNEL, dilation, mode, list(pad(dilation)))
    cotangent = np.asarray(_draw(*value.shape, seed=2))

    @jit
    def ours(x, kernel):
        y, pull = jax.vjp(
            lambda x, k: dilated_conv(x, k, dilation=dilation, padding=padding),
            x,
            kernel,
        )
        return y, *pull(cotangent)

    for one, other in zip(ours(X, KERNEL), (value, *pull(cotangent)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * abs(other).max())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize("dilation", [1, 3])
def test_same_padding_of_even_kernels_equals_torch(torch, dilation):
    kernel = _draw(2, 4, 3, 4)
    planes = torch.tensor(np.array(X)).permute(0, 3, 1, 2)
    weight = torch.tensor(np.array(kernel)).permute(3, 2, 0, 1)
    conv = torch.nn.functional.conv2d
    theirs = conv(planes, weight, dilation=dilation, padding="same")
    ours = dilated_conv(X, kernel, dilation=dilation, padding="same")
    expected = theirs.permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dilation", [2, 4])
def test_equals_a_convolution_with_the_zero_filled_filter(dilation):
    filled = np.zeros((2 * dilation + 1, 4 * dilation + 1, 3, 4), np.float32)
    filled[::dilation, ::dilation] = KERNEL
    ours = dilated_conv(X, KERNEL, dilation=dilation)
    expected = dilated_conv(X, jnp.asarray(filled))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dilation", [2, 3])
def test_is_undilated_convolution_of_each_interleaved_subsampling(dilation):
    whole = np.asarray(dilated_conv(X, KERNEL, dilation=dilation))
    for i, j in itertools.product(range(dilation), repeat=2):
        phase = dilated_conv(X[:, i::dilation, j::dilation], KERNEL)
        expected = whole[:, i::dilation, j::dilation]
        np.testing.assert_allclose(phase, expected, rtol=1e-5, atol=1e-5)


def test_no_dilated_filter_is_built_forward_or_backward():
    def loss(x, kernel):
        return dilated_conv(x, kernel, dilation=6).sum()

    def filled(x, kernel):
        big = jax.lax.pad(kernel, 0.0, [(0, 0, 5), (0, 0, 5), (0, 0, 0), (0, 0, 0)])
        return dilated_conv(x, big).sum()

    def lowered(fun):
        gradients = jax.jit(jax.value_and_grad(fun, argnums=(0, 1)))
        return gradients.lower(_draw(1, 20, 20, 3), _draw(3, 3, 3, 4)).as_text()

    assert "tensor<13x13x3x4x" in lowered(filled)
    assert "tensor<13x13x" not in lowered(loss)
    assert lowered(loss).count("stablehlo.convolution") == 3


@pytest.mark.parametrize("width", [1, 4, 5, 16])
def test_reflection_bounces_like_numpy_also_beyond_the_map(width):
    x = X[:, :5, :6]
    both = (width, width)
    padded = pad_maps(x, (both, both), "reflect")
    expected = np.pad(x, ((0, 0), both, both, (0, 0)), mode="reflect")
    np.testing.assert_array_equal(padded, expected)
    kernel = KERNEL[:, :3]
    ours = dilated_conv(x, kernel, dilation=width, padding="reflect")
    valid = dilated_conv(jnp.asarray(expected), kernel, dilation=width)
    np.testing.assert_allclose(ours, valid, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dilation", [0, -2])
def test_a_dilation_below_one_is_refused(dilation):
    with pytest.raises(ValueError, match=f"dilation={dilation} is not a positive int"):
        dilated_conv(X, KERNEL, dilation=dilation)


def test_other_channels_than_the_kernel_expects_are_refused(unchecked):
    with pytest.raises(ValueError, match="x has 2 channels, the kernel expects 3"):
        dilated_conv(X[..., :2], KERNEL)


@pytest.mark.parametrize(
    "padding",
    ["full", -1, 1.5, (1, 2), ((1, 1),), ((1, 1), (2,)), ((0, 0), (-1, 0))],
)
def test_other_paddings_are_refused_with_those_allowed(unchecked, padding):
    with pytest.raises(ValueError, match=r"padding=.* is not one of 'valid', 'same'"):
        dilated_conv(X, KERNEL, padding=padding)


@pytest.mark.parametrize("rows, columns", [(8, 17), (9, 16)])
def test_a_map_one_cell_smaller_than_the_dilated_kernel_is_refused(rows, columns):
    message = f"{rows}x{columns} is smaller than the dilated kernel of 9x17 .*'valid'"
    with pytest.raises(ValueError, match=message):
        dilated_conv(X[:, :rows, :columns], KERNEL, dilation=4)


def test_a_map_as_large_as_the_dilated_kernel_gives_one_cell():
    y = dilated_conv(X[:, :9, :17], KERNEL, dilation=4)
    expected = jnp.einsum("bhwc,hwcd->bd", X[:, :9:4, :17:4], KERNEL)
    np.testing.assert_allclose(y[:, 0, 0], expected, rtol=1e-5, atol=1e-5)
    assert y.shape == (2, 1, 1, 4)


@pytest.mark.parametrize(
    "size, side, stride",
    [((9, 12), 3, 2), ((8, 7), 7, 2), ((1, 5), 3, 8), ((9, 12), 1, 2), ((9, 8), 2, 3)],
)
def test_a_stride_keeps_every_nth_output_of_lax(size, side, stride):
    x, kernel = _draw(2, *size, 3), _draw(side, side, 3, 4, seed=1)
    pads = ((side - 1) // 2, side // 2)  # "same" of even kernels starts one cell early

    def wanted(x, kernel):
        axes = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), (pads, pads), dimension_numbers=axes
        )
        return y[:, ::stride, ::stride]

    def ours(x, kernel):
        return dilated_conv(x, kernel, stride=stride, padding="same")

    def passes(function):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    results = jit(lambda: (passes(ours), passes(wanted)))()
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("stride, dilation", [(0, 1), (-1, 1), (2, 2)])
def test_other_strides_are_refused(unchecked, stride, dilation):
    x, k = jnp.zeros((1, 8, 8, 1)), jnp.zeros((3, 3, 1, 1))
    with pytest.raises(ValueError, match=f"stride={stride} is not a positive integer"):
        dilated_conv(x, k, stride=stride, dilation=dilation)
