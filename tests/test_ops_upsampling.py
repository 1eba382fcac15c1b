"""Upsampling: the released loop, PyTorch's deconvolution, and the pixel shuffle."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from dilax.ops import depth_to_space, upsample_bilinear
from dilax.runtime import jit

enlarge = jit(upsample_bilinear, static_argnames=("factor", "convention"))


def _draw(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def _released(x, factor):
    """Output (p, q) of one map read at (p, q) / factor, clamped at the map's end."""
    h, w = x.shape
    out = np.zeros((h * factor, w * factor))
    for p, q in itertools.product(range(h * factor), range(w * factor)):
        i, j = p // factor, q // factor
        s, t = p / factor - i, q / factor - j
        below, right = min(i + 1, h - 1), min(j + 1, w - 1)
        out[p, q] += (1 - s) * (1 - t) * x[i, j] + s * (1 - t) * x[below, j]
        out[p, q] += (1 - s) * t * x[i, right] + s * t * x[below, right]
    return out


def _pull(factor, convention, x, cotangent):
    def pull(x):
        _, transpose = jax.vjp(lambda x: upsample_bilinear(x, factor, convention), x)
        return transpose(cotangent)[0]

    return np.asarray(jit(pull)(x))


@pytest.mark.parametrize("sides, factor", [((3, 5), 1), ((3, 5), 3), ((1, 2), 8)])
def test_top_left_reads_at_p_over_factor_as_released(sides, factor):
    x = _draw(2, *sides, 2)
    y = enlarge(x, factor=factor, convention="top_left")
    for b, k in itertools.product(range(2), repeat=2):
        expected = _released(np.asarray(x[b, ..., k]), factor)
        np.testing.assert_allclose(y[b, ..., k], expected, rtol=1e-5, atol=1e-6)


def test_top_left_gradient_is_the_transpose_of_the_released_interpolation():
    cells = np.eye(6).reshape(6, 2, 3)
    matrix = np.stack([_released(cell, 4).ravel() for cell in cells], axis=1)
    cotangent = _draw(1, 8, 12, 1)
    gradient = _pull(4, "top_left", jnp.zeros((1, 2, 3, 1)), cotangent)
    expected = matrix.T @ np.asarray(cotangent).ravel()
    np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-5, atol=1e-5)


def _deconvolve(torch, x, factor):
    """`ctx_upsample`: bilinear kernel 2·factor, stride factor, one group a class."""
    taps = 1 - np.abs(np.arange(2 * factor) / factor - (2 * factor - 1) / (2 * factor))
    weight = torch.tensor(np.outer(taps, taps), dtype=torch.float32)
    return torch.nn.functional.conv_transpose2d(
        x.permute(0, 3, 1, 2),
        weight.expand(x.shape[-1], 1, -1, -1),
        stride=factor,
        padding=factor // 2,
        groups=x.shape[-1],
    ).permute(0, 2, 3, 1)


@pytest.mark.parametrize("factor", [2, 8])
def test_centred_equals_the_transposed_convolution_of_torch(torch, factor):
    x = _draw(2, 5, 6, 3)
    leaf = torch.tensor(np.array(x), requires_grad=True)
    theirs = _deconvolve(torch, leaf, factor)
    ours = enlarge(x, factor=factor, convention="centred")
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    cotangent = _draw(*theirs.shape, seed=1)
    theirs.backward(torch.tensor(np.array(cotangent)))
    ours = _pull(factor, "centred", x, cotangent)
    np.testing.assert_allclose(ours, leaf.grad, rtol=1e-5, atol=1e-4)


def test_top_left_keeps_a_constant_everywhere():
    x = jnp.full((1, 3, 4, 2), 5.0)
    np.testing.assert_array_equal(enlarge(x), np.full((1, 24, 32, 2), 5.0))


def test_centred_keeps_a_constant_inside_and_fades_over_the_outermost_half_cell():
    x = jnp.ones((1, 3, 4, 1))
    y = np.asarray(enlarge(x, factor=8, convention="centred"))[0, ..., 0]
    rows = np.concatenate([[9, 11, 13, 15], np.full(16, 16), [15, 13, 11, 9]]) / 16
    np.testing.assert_allclose(y[:, 12], rows, rtol=1e-6)
    columns = np.concatenate([rows[:4], np.ones(24), rows[-4:]])
    np.testing.assert_allclose(y, np.outer(rows, columns), rtol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_the_conventions_differ_by_3_5_pixels(axis):
    ramp = jnp.swapaxes(jnp.arange(6.0).reshape(1, 6, 1, 1), 1, axis)
    ramp = jnp.broadcast_to(ramp, (1, 6, 6, 1))
    pixels = np.arange(48) / 8
    inside = np.arange(4, 40)  # where neither border is felt
    for convention, shift in (("top_left", 0), ("centred", 3.5)):
        y = np.asarray(enlarge(ramp, factor=8, convention=convention))
        line = np.moveaxis(y, axis, 0)[:, 0, 20, 0]
        expected = (pixels - shift / 8)[inside]
        np.testing.assert_allclose(line[inside], expected, atol=1e-6)


def test_nothing_lowers_to_a_convolution_forward_or_backward():
    x = _draw(1, 4, 4, 3)

    def transposed(x):
        kernel = jnp.ones((16, 16, 3, 3))
        return jax.lax.conv_transpose(x, kernel, (8, 8), "SAME")

    def lowered(fun):
        both = jax.value_and_grad(lambda x: fun(x).sum())
        return jax.jit(both).lower(x).as_text()

    assert "convolution" in lowered(transposed)
    for convention in ("top_left", "centred"):
        text = lowered(lambda x, c=convention: upsample_bilinear(x, 8, c))
        assert "convolution" not in text


@pytest.mark.parametrize("convention", ["top_left", "centred"])
def test_the_dtype_stays(convention):
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    assert enlarge(x, factor=4, convention=convention).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "factor, convention",
    [(0, "top_left"), (-8, "top_left"), (3, "centred"), (1, "centred"), (8, "corners")],
)
def test_other_factors_and_conventions_are_refused(monkeypatch, factor, convention):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = f"factor={factor} with convention='{convention}': .* an even factor"
    with pytest.raises(ValueError, match=message):
        upsample_bilinear(_draw(1, 2, 2, 1), factor, convention)


@pytest.mark.parametrize("factor, classes", [(1, 5), (2, 1), (3, 5)])
def test_depth_to_space_is_a_loop_over_cells_and_classes(factor, classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, classes * factor**2)).astype("f4")
    expected = np.full((2, 3 * factor, 4 * factor, classes), np.nan, "f4")
    for b, i, j, k, dy, dx in np.ndindex(2, 3, 4, classes, factor, factor):
        channel = k * factor**2 + dy * factor + dx
        expected[b, i * factor + dy, j * factor + dx, k] = x[b, i, j, channel]
    np.testing.assert_array_equal(depth_to_space(jnp.asarray(x), factor), expected)


def test_depth_to_space_is_the_pixel_shuffle_of_pytorch(torch):
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 18)).astype("f4")
    twin = torch.nn.functional.pixel_shuffle(torch.tensor(x).permute(0, 3, 1, 2), 3)
    ours = depth_to_space(jnp.asarray(x), 3)
    np.testing.assert_array_equal(ours, twin.permute(0, 2, 3, 1))


@pytest.mark.parametrize("factor", [0, 3])
def test_factors_that_do_not_divide_the_channels_are_refused(factor):
    with pytest.raises(ValueError, match=f"factor={factor}: 8 channels"):
        depth_to_space(jnp.zeros((1, 2, 2, 8)), factor)
