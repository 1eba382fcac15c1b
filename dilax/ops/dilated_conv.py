"""Dilated convolution (Yu & Koltun 2016, §2, Eq. 2): no dilated filter is built."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dilax.ops.lowerings import (
    DIRECT,
    LOWERINGS,
    Choice,
    Lowering,
    choose,
    convolve,
    input_gradient,
    kernel_gradient,
)
from dilax.ops.winograd import direct
from dilax.runtime.row_shards import current_shards, refuse_shards

Border = Literal["zero", "reflect"]
Padding = Literal["valid", "same", "reflect"] | int | tuple[tuple[int, int], ...]

_ALLOWED = "'valid', 'same', 'reflect', an int >= 0 or ((top, bottom), (left, right))"

_MODES = {"zero": "constant", "reflect": "reflect"}


def dilated_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    dilation: int = 1,
    stride: int = 1,
    padding: Padding = "valid",
    lowering: Lowering | Choice | None = None,
) -> Float[Array, "b h2 w2 d"]:
    """Convolves with a dilated kernel, as Caffe and the release do.

    The output at p sums `x[p + l·t] · kernel[t]` over the taps t, a correlation.
    Eq. 2 of the paper, F *_l k (p) = Σ_{s + l·t = p} F(s) k(t), is a convolution: it
    is this function applied to the kernel turned by 180 degrees.

    Padding is written into the input before a valid convolution: for the few channels
    of a context module that makes the kernel's gradient three times faster on a CPU
    than padding inside the convolution.

    Args:
        x: input maps, NHWC.
        kernel: taps × input maps × output maps, HWIO.
        dilation: l, the distance between taps in cells; 1 is an ordinary convolution.
        stride: cells from one output to the next; undilated kernels take more than 1.
        padding: `"valid"` (none), `"same"` (zeros, output as large as the input),
            `"reflect"` (as large, edge cell not repeated), a number of zeros on each
            side, or ((top, bottom), (left, right)) zeros. The sizes are those at
            stride 1.
        lowering: how it is computed, `"direct"`, `"phases"`, `"pairs"`, `"taps"`,
            `"rows"` or `"patches"` (see `dilax.ops.lowerings`), or a `Choice` for the
            output and each gradient; None takes what was measured to be fastest. All
            agree to rounding. Forward-mode derivatives need `"direct"`. A stride is
            always XLA's own.

    Returns:
        Output maps of ⌈(h + padding − l·(kh − 1)) / stride⌉ rows, and columns likewise.

    Raises:
        ValueError: if the dilation, the stride, the padding or the lowering is not one
            of these, channels disagree, or the padded input is smaller than the dilated
            kernel.

    Example:
        >>> x = jnp.arange(7.0).reshape(1, 1, 7, 1)
        >>> taps = jnp.array([1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
        >>> dilated_conv(x, taps, dilation=2)[0, 0, :, 0].tolist()
        [4.0, 6.0, 8.0]

    Source: paper §2; `lax.conv_general_dilated` with `rhs_dilation`.
    """
    if dilation < 1:
        raise ValueError(f"dilation={dilation} is not a positive integer")
    if stride < 1 or (stride > 1 and dilation > 1):
        raise ValueError(
            f"stride={stride} is not a positive integer that is 1 where dilation="
            f"{dilation} is not"
        )
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x has {x.shape[-1]} channels, the kernel expects {kernel.shape[2]}"
        )
    if stride > 1:
        refuse_shards(f"a convolution of stride={stride}")
    extent = tuple(dilation * (k - 1) for k in kernel.shape[:2])
    widths = _pad_widths(padding, extent)
    border: Border = "reflect" if padding == "reflect" else "zero"

    def valid(x, kernel):
        if stride > 1:
            return direct(x, kernel, stride=stride)
        choice = (
            _chosen(lowering)
            if lowering
            else choose(x.shape, kernel.shape, dilation, x.dtype)
        )
        if choice == DIRECT:
            return convolve(x, kernel, dilation, "direct")
        return _convolved(x, kernel, dilation, choice)

    if shards := current_shards():
        return shards.convolve(x, kernel, widths, _MODES[border], extent[0], valid)
    x = pad_maps(x, widths, border)
    _check_size(x.shape[1:3], extent, padding)
    return valid(x, kernel)


def _check_size(size: tuple[Any, ...], extent: tuple[int, ...], padding) -> None:
    if any(n <= e for n, e in zip(size, extent, strict=True)):
        raise ValueError(
            f"a padded input of {size[0]}x{size[1]} is smaller than the dilated "
            f"kernel of {extent[0] + 1}x{extent[1] + 1} (padding={padding!r})"
        )


def _chosen(lowering: Lowering | Choice) -> Choice:
    choice = Choice(*[lowering] * 3) if isinstance(lowering, str) else lowering
    if not set(choice) <= set(LOWERINGS):
        raise ValueError(f"lowering={lowering!r} is not among {LOWERINGS}")
    return choice


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolved(x, kernel, dilation: int, choice: Choice):
    return convolve(x, kernel, dilation, choice.forward, alone=True)


def _forward(x, kernel, dilation: int, choice: Choice):
    return convolve(x, kernel, dilation, choice.forward), (x, kernel)


def _backward(dilation: int, choice: Choice, residuals, gradient):
    x, kernel = residuals
    gradient = jnp.asarray(gradient)  # of a caller, it may be NumPy's
    like_x, like_kernel = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in residuals)
    return (
        input_gradient(gradient, kernel, like_x, dilation, choice.input),
        kernel_gradient(x, gradient, like_kernel, dilation, choice.kernel),
    )


_convolved.defvjp(_forward, _backward)


def pad_maps(
    x: Float[Array, "b h w c"],
    widths: tuple[tuple[int, int], ...],
    border: Border = "zero",
) -> Float[Array, "b h2 w2 c"]:
    """Pads rows and columns with zeros, or by reflection (edge cell not repeated).

    Args:
        x: maps, NHWC.
        widths: ((top, bottom), (left, right)) in cells. Reflection bounces as often
            as a width larger than the map asks for.
        border: what stands outside the map.

    Raises:
        ValueError: if the border is not one of these.
    """
    if border not in _MODES:
        raise ValueError(f"border={border!r} is not one of 'zero', 'reflect'")
    if not any(sum(w) for w in widths):
        return x
    if shards := current_shards():
        return shards.pad(x, widths, _MODES[border])
    return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode=_MODES[border])


def _pad_widths(padding: Padding, extent: tuple[int, ...]) -> tuple:
    match padding:
        case "valid":
            return ((0, 0), (0, 0))
        case "same" | "reflect":
            return tuple((e // 2, e - e // 2) for e in extent)
        case int() if padding >= 0:
            return ((padding, padding),) * 2
        case ((int(), int()), (int(), int())) if min(map(min, padding)) >= 0:
            return padding
    raise ValueError(f"padding={padding!r} is not one of {_ALLOWED}")
