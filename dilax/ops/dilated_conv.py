"""Dilated convolution (Yu & Koltun 2016, Eq. 2), and identity initialization (§3)."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dilax.ops.lowerings import (
    DIRECT,
    LOWERINGS,
    NO_PADDING,
    Choice,
    Lowering,
    choose,
    convolve,
    direct,
    input_gradient,
    kernel_gradient,
)
from dilax.runtime.row_shards import Widths, current_shards, refuse_shards

Border = Literal["zero", "reflect"]
Padding = Literal["valid", "same", "reflect"] | int | tuple[tuple[int, int], ...]

_ALLOWED = "'valid', 'same', 'reflect', an int >= 0 or ((top, bottom), (left, right))"

_MODES = {"zero": "constant", "reflect": "reflect"}  # as `jnp.pad` calls them


def dilated_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    dilation: int = 1,
    stride: int = 1,
    padding: Padding = "valid",
    lowering: Lowering | Choice | None = None,
) -> Float[Array, "b h2 w2 d"]:
    """Convolve with a dilated kernel, as Caffe and the released networks do.

    The output at p is the sum of `x[p + l·t] · kernel[t]` over the taps t: a
    correlation. Eq. 2 of the paper, F *_l k (p) = Σ_{s + l·t = p} F(s) k(t), is a
    convolution: this function applied to the kernel rotated by 180 degrees.

    Args:
        x: input maps, NHWC.
        kernel: taps × input maps × output maps, HWIO.
        dilation: l, the distance between taps in cells; 1 is an ordinary convolution.
        stride: distance between outputs in cells; must be 1 if `dilation` is not.
        padding: `"valid"` (none), `"same"` (zeros; the output is as large as the
            input), `"reflect"` (the same size; the edge cell is not repeated), a number
            of zeros on each side, or ((top, bottom), (left, right)) zeros. The sizes
            are those at stride 1.
        lowering: how to compute it: one of `dilax.ops.lowerings.LOWERINGS`, such as
            `"direct"` or `"winograd"`, or a `Choice` for the output and each gradient.
            None takes what measurements showed to be fastest. All agree up to rounding.
            Forward-mode derivatives need `"direct"`. Strided convolutions are always
            left to XLA.

    Returns:
        Output maps of ⌈(h + padding − l·(kh − 1)) / stride⌉ rows, and columns
        accordingly.

    Raises:
        ValueError: if the dilation, stride, padding or lowering is not allowed, if the
            channels disagree, or if the padded input is smaller than the dilated
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
    choice = Choice(*[lowering] * 3) if isinstance(lowering, str) else lowering
    if choice and not set(choice) <= set(LOWERINGS):
        raise ValueError(f"lowering={lowering!r} is not among {LOWERINGS}")
    extent = tuple(dilation * (k - 1) for k in kernel.shape[:2])
    widths = _pad_widths(padding, extent)
    border: Border = "reflect" if padding == "reflect" else "zero"

    def convolved(x, kernel, widths: Widths = NO_PADDING):
        if stride > 1:
            return direct(x, kernel, stride=stride, widths=widths)
        padded = _padded_shape(x, widths)
        best = choice or choose(padded, kernel.shape, dilation, x.dtype)
        if best == DIRECT:  # XLA differentiates it, in forward mode too
            return direct(x, kernel, dilation, widths=widths)
        return _convolved(x, kernel, dilation, best, widths)

    if shards := current_shards():
        return shards.convolve(x, kernel, widths, _MODES[border], extent[0], convolved)
    _, height, width, _ = _padded_shape(x, widths)
    if height <= extent[0] or width <= extent[1]:
        raise ValueError(
            f"a padded input of {height}x{width} is smaller than the dilated "
            f"kernel of {extent[0] + 1}x{extent[1] + 1} (padding={padding!r})"
        )
    if border == "zero" and jax.default_backend() != "cpu":
        return convolved(x, kernel, widths)
    # Padding before the convolution, not inside it: with the few channels of a context
    # module, the kernel's gradient is then three times faster on a CPU.
    return convolved(pad_maps(x, widths, border), kernel)


def _padded_shape(x, widths: Widths) -> tuple:
    sizes = (n + sum(w) for n, w in zip(x.shape[1:3], widths, strict=True))
    return (x.shape[0], *sizes, x.shape[3])


# Each pass has its own lowering, so JAX must not derive the gradients from the output.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolved(x, kernel, dilation: int, choice: Choice, widths: Widths):
    return convolve(x, kernel, dilation, choice.forward, widths, alone=True)


def _forward(x, kernel, dilation: int, choice: Choice, widths: Widths):
    return convolve(x, kernel, dilation, choice.forward, widths), (x, kernel)


def _backward(dilation: int, choice: Choice, widths: Widths, residuals, gradient):
    x, kernel = residuals
    gradient = jnp.asarray(gradient)  # a caller may pass a NumPy array
    like_x, like_kernel = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in residuals)
    return (
        input_gradient(gradient, kernel, like_x, dilation, choice.input, widths),
        kernel_gradient(x, gradient, like_kernel, dilation, choice.kernel, widths),
    )


_convolved.defvjp(_forward, _backward)


def pad_maps(
    x: Float[Array, "b h w c"],
    widths: tuple[tuple[int, int], ...],
    border: Border = "zero",
) -> Float[Array, "b h2 w2 c"]:
    """Pad rows and columns with zeros, or by reflection (edge cell not repeated).

    Args:
        x: maps, NHWC.
        widths: ((top, bottom), (left, right)) in cells. They may be larger than the
            map: reflection then bounces back and forth.
        border: what surrounds the map.

    Raises:
        ValueError: if the border is neither `"zero"` nor `"reflect"`.
    """
    if border not in _MODES:
        raise ValueError(f"border={border!r} is not one of 'zero', 'reflect'")
    if not any(sum(w) for w in widths):
        return x
    if shards := current_shards():
        return shards.pad(x, widths, _MODES[border])
    return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode=_MODES[border])


def _pad_widths(padding: Padding, extent: tuple[int, ...]) -> Widths:
    match padding:
        case "valid":
            return ((0, 0), (0, 0))
        case "same" | "reflect":
            return tuple((e // 2, e - e // 2) for e in extent)
        case int() if padding >= 0:
            return ((padding, padding),) * 2
        case (
            (int(top), int(bottom)),
            (int(left), int(right)),
        ) if min(top, bottom, left, right) >= 0:
            return ((top, bottom), (left, right))  # hashable, even if given as lists
    raise ValueError(f"padding={padding!r} is not one of {_ALLOWED}")


def identity_init(groups: int, sigma: float = 0.0) -> Callable:
    """Return an initializer whose kernels pass grouped feature maps on unchanged.

    Random initialization did not help the context module (§3). With these kernels each
    layer passes its input on, as in the recurrent networks of Le et al. (2015).

    With c_i input and c_{i+1} output maps, both multiples of C = `groups` (Eq. 5):

        k_b(t, a) = C / c_{i+1}   at the centre tap where ⌊aC/c_i⌋ = ⌊bC/c_{i+1}⌋,
                    ε ~ N(0, σ²)  elsewhere.

    Eq. 4 is the case c_i = c_{i+1} = C with σ = 0. Each layer preserves the sum of a
    group's maps, so the gain of a stack telescopes to 1: at initialization without
    noise, a stack with ReLU returns max(0, x).

    Args:
        groups: C, the number of classes.
        sigma: σ, the standard deviation of the noise, small compared with C / c_{i+1}.
            As in the released builder, noise is drawn for the whole kernel before the
            matching centre taps are overwritten. 0 means no noise.

    Returns:
        `init(key, shape, dtype)` for HWIO shapes with odd kernel sides.

    Raises:
        ValueError: from the returned function, if channels are not multiples of
            `groups` or a kernel side is even.

    Example:
        >>> kernel = identity_init(2)(jax.random.key(0), (3, 3, 2, 4), jnp.float32)
        >>> kernel[1, 1].tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]

    Source: paper §3, Eq. 4 and Eq. 5; the release's network builder.
    """

    def init(key: jax.Array, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
        del out_sharding
        kh, kw, c_in, c_out = shape
        if c_in % groups or c_out % groups:
            raise ValueError(
                f"identity_init: {c_in} -> {c_out} channels are not both multiples of "
                f"groups={groups}"
            )
        if not (kh % 2 and kw % 2):
            raise ValueError(f"identity_init: a {kh}x{kw} kernel has no centre tap")
        a = np.arange(c_in) * groups // c_in
        b = np.arange(c_out) * groups // c_out
        centre = np.zeros(shape, np.float32)
        centre[kh // 2, kw // 2] = (a[:, None] == b[None, :]) * (groups / c_out)
        noise = sigma * jax.random.normal(key, shape, dtype) if sigma else 0.0
        return jnp.where(centre != 0, jnp.asarray(centre, dtype), noise)

    return init
