"""Ways to compute a dilated convolution (Yu & Koltun 2016, §2), and the fastest one.

All compute the same sums of a padded input at stride 1, and none builds a dilated
filter. Which is fastest depends on the backend and the shape, and differs between the
output and the two gradients; `choose` has the rules.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.ops.winograd import by_winograd
from dilax.runtime.row_shards import Widths

Lowering = Literal[
    "direct", "examples", "phases", "pairs", "winograd", "taps", "rows", "patches"
]
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)
"""
- `"direct"` leaves it to XLA, with `rhs_dilation`.
- `"examples"` does so too, but computes the kernel's gradient one example at a time,
  with the channels as a batch.
- `"phases"` splits the maps into dilation² interleaved ones, a batch for an undilated
  kernel (space to batch).
- `"pairs"` treats neighbouring columns of the maps, or of the phases, as one column of
  twice the channels, which suits layers of few channels. It multiplies by zeros in a
  quarter of its products.
- `"winograd"` computes three columns at a time with fewer products (Winograd 1980,
  Lavin & Gray 2016): 5 for 3 taps instead of 9, 11 for 7 taps instead of 21. It is as
  accurate as the others, but for bfloat16 (see `dilax.ops.winograd`).
- `"taps"` adds up one matrix product per tap, `"rows"` one per row of taps whose inputs
  are concatenated, and `"patches"` takes a single product (im2col). These accumulate in
  float32 at least.
"""

NO_PADDING: Widths = ((0, 0), (0, 0))

# The number of matrix products for a kernel of kh × kw taps.
_PRODUCTS: dict[str, Callable[[int, int], int]] = {
    "taps": lambda kh, kw: kh * kw,
    "rows": lambda kh, kw: kh,
    "patches": lambda kh, kw: 1,
}


def direct(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    dilation: int = 1,
    stride: int = 1,
    widths: Widths = NO_PADDING,
) -> Float[Array, "b h2 w2 d"]:
    """Compute a convolution with XLA's own lowering."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=widths,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    dilation: int,
    lowering: Lowering,
    widths: Widths = NO_PADDING,
    alone: bool = False,
) -> Float[Array, "b h2 w2 d"]:
    """Compute a convolution.

    Args:
        x: input maps.
        kernel: taps × input maps × output maps.
        dilation: distance between taps in cells.
        lowering: see `LOWERINGS`.
        widths: ((top, bottom), (left, right)) zeros around the maps, in cells.
        alone: whether no gradients follow; see `by_winograd`.
    """
    if lowering in ("direct", "examples"):
        return direct(x, kernel, dilation, widths=widths)
    if lowering == "phases" and not any(n % dilation for n in sum(widths, ())):
        return _by_phases(x, kernel, dilation, direct, widths)
    x = _padded(x, widths)
    if lowering in ("phases", "pairs"):
        undilated = direct if lowering == "phases" else _by_pairs
        return _by_phases(x, kernel, dilation, undilated)
    if lowering == "winograd":
        return by_winograd(x, kernel, dilation, alone)
    inputs = _tap_inputs(x, kernel.shape, dilation, lowering)
    weights = kernel.reshape(len(inputs), -1, kernel.shape[3])
    parts = zip(inputs, weights, strict=True)
    return sum(_product(s, w, ((3,), (0,))) for s, w in parts).astype(x.dtype)


def input_gradient(
    gradient: Float[Array, "b h2 w2 d"],
    kernel: Float[Array, "kh kw c d"],
    x: jax.ShapeDtypeStruct,
    dilation: int,
    lowering: Lowering,
    widths: Widths = NO_PADDING,
) -> Float[Array, "b h w c"]:
    """Pull the output's gradient back to an input of x's shape and dtype."""
    if lowering not in _PRODUCTS:
        linear = functools.partial(
            convolve, kernel=kernel, dilation=dilation, lowering=lowering, widths=widths
        )
        return jax.linear_transpose(linear, x)(gradient)[0]
    wide = jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    count = _PRODUCTS[lowering](*kernel.shape[:2])
    weights = kernel.reshape(count, -1, kernel.shape[3])
    parts = [_product(gradient, w, ((3,), (1,))) for w in weights]
    # The transpose of slicing the input for each tap adds the slices up in place.

    def slices(x):
        return _tap_inputs(_padded(x, widths), kernel.shape, dilation, lowering)

    return jax.linear_transpose(slices, wide)(parts)[0].astype(x.dtype)


def kernel_gradient(
    x: Float[Array, "b h w c"],
    gradient: Float[Array, "b h2 w2 d"],
    kernel: jax.ShapeDtypeStruct,
    dilation: int,
    lowering: Lowering,
    widths: Widths = NO_PADDING,
) -> Float[Array, "kh kw c d"]:
    """Pull the output's gradient back to a kernel of the given shape and dtype."""
    if (
        lowering == "direct"
        and jax.default_backend() == "cpu"
        and jax.device_count() == 1
    ):
        x = _padded(x, widths)
        parts = [_by_example(a, g, dilation) for a, g in zip(x, gradient, strict=True)]
        return sum(parts).astype(kernel.dtype)
    if lowering not in _PRODUCTS:
        linear = functools.partial(
            convolve, x, dilation=dilation, lowering=lowering, widths=widths
        )
        return jax.linear_transpose(linear, kernel)(gradient)[0]
    pixels = ((0, 1, 2), (0, 1, 2))
    inputs = _tap_inputs(_padded(x, widths), kernel.shape, dilation, lowering)
    products = [_product(s, gradient, pixels) for s in inputs]
    return jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)


def _by_example(x, gradient, dilation: int):
    """Pull one example's gradient back to the kernel: convolve its maps with it.

    Channels become the batch. A product with 1 moves them there, because XLA's CPU
    backend transposes maps of few channels slowly.
    """
    one = jnp.eye(x.shape[2], dtype=x.dtype)
    maps = lax.dot_general(one, x, (((1,), (2,)), ((), ())))
    y = lax.conv_general_dilated(
        maps[..., None],
        gradient[:, :, None],
        window_strides=(dilation, dilation),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.transpose(1, 2, 0, 3)


def _by_phases(x, kernel, dilation: int, undilated, widths: Widths = NO_PADDING):
    """Convolve each phase: output p depends on inputs p, p + dilation, … only.

    Multiples of the dilation pad every phase alike, which gradients then leave out.
    """
    if any(map(any, widths)):
        inside = tuple((low // dilation, high // dilation) for low, high in widths)
        undilated = functools.partial(undilated, widths=inside)
    if dilation == 1:
        return undilated(x, kernel)
    size = [
        n + sum(width) - dilation * (k - 1)
        for n, width, k in zip(x.shape[1:3], widths, kernel.shape[:2], strict=True)
    ]
    b, h, w = x.shape[0], *(-(-n // dilation) for n in x.shape[1:3])
    ends = zip((h, w), x.shape[1:3], strict=True)
    x = _padded(x, tuple((0, m * dilation - n) for m, n in ends))
    # The batch stays outermost: where it is divided over devices, the merged axis is
    # divided with it, and the partitioner has nothing to gather.
    x = x.reshape(b, h, dilation, w, dilation, -1).transpose(0, 2, 4, 1, 3, 5)
    y = undilated(x.reshape(b * dilation * dilation, h, w, -1), kernel)
    y = y.reshape(b, dilation, dilation, *y.shape[1:]).transpose(0, 3, 1, 4, 2, 5)
    rows, columns = (y.shape[i] * dilation for i in (1, 3))
    return y.reshape(b, rows, columns, -1)[:, : size[0], : size[1]]


def _padded(x, widths: Widths):
    return jnp.pad(x, ((0, 0), *widths, (0, 0))) if any(map(any, widths)) else x


def _by_pairs(x, kernel):
    """Treat columns 2j and 2j + 1 as one column of all their channels, in and out."""
    (b, h, w, c), (kh, kw, _, d) = x.shape, kernel.shape
    taps, columns = kw // 2 + 1, -(-(w - kw + 1) // 2)
    wide = 2 * (columns + taps - 1)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, max(0, wide - w)), (0, 0)))[:, :, :wide]
    y = direct(x.reshape(b, h, wide // 2, 2 * c), pair_kernel(kernel))
    return y.reshape(b, h - kh + 1, 2 * columns, d)[:, :, : w - kw + 1]


def pair_kernel(kernel: Float[Array, "kh kw c d"]) -> Float[Array, "kh t c2 d2"]:
    """Return the kernel for maps whose columns 2j and 2j + 1 are one column.

    Args:
        kernel: kw taps per row.

    Returns:
        kw // 2 + 1 taps per row, from twice as many maps to twice as many.
    """
    kh, kw, c, d = kernel.shape
    taps = kw // 2 + 1
    # Output 2j + q depends on input 2(j + t) + p through tap 2t + p − q.
    shifted = [
        jnp.pad(kernel, ((0, 0), (q, 2 * taps - kw - q), (0, 0), (0, 0)))
        for q in (0, 1)
    ]
    return jnp.stack(shifted, 3).reshape(kh, taps, 2 * c, 2 * d)


def _tap_inputs(x, shape: tuple[int, ...], dilation: int, lowering: Lowering):
    """Return the input cells of each tap, row of taps, or all: (b, h2, w2, n·c)."""
    rows, columns = (
        n - dilation * (k - 1) for n, k in zip(x.shape[1:3], shape[:2], strict=True)
    )
    slices = [
        x[:, i : i + rows, j : j + columns]
        for i in range(0, dilation * shape[0], dilation)
        for j in range(0, dilation * shape[1], dilation)
    ]
    together = len(slices) // _PRODUCTS[lowering](*shape[:2])
    starts = range(0, len(slices), together)
    return [jnp.concatenate(slices[i : i + together], -1) for i in starts]


def _product(a, b, axes):
    """Return a matrix product over these axes, accumulated in float32 at least."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wide)


class Choice(NamedTuple):
    """The lowering of each pass.

    Attributes:
        forward: lowering of the output.
        input: lowering of the gradient with respect to the input.
        kernel: lowering of the gradient with respect to the kernel.
    """

    forward: Lowering
    input: Lowering
    kernel: Lowering


DIRECT = Choice("direct", "direct", "direct")
PHASES = Choice("phases", "phases", "phases")
TAPS = Choice("taps", "taps", "taps")

# Bytes of concatenated inputs above which a lowering that copies less is used.
_MAX_COPIED = 2**28
# Below this number of operations nothing can be gained, and direct compiles fastest.
_MIN_WORK = 10**8
# Bytes of a map of float32 that Winograd's sums would have to fetch from memory.
_MAX_SUMMED = 2**25
# Bytes of an example's map above which XLA's CPU backend transposes it slowly.
_MAX_TRANSPOSED = 2**24


def choose(
    x: tuple[Any, ...],
    kernel: tuple[int, ...],
    dilation: int,
    dtype: DTypeLike,
    backend: str | None = None,
) -> Choice:
    """Choose the lowerings of a convolution of these shapes, the fastest that we know.

    On CPUs, these are rules that measurements gave (`benchmarks/lowerings.py` repeats
    them). On GPUs and TPUs, which were not measured, they follow what compilers make of
    the lowerings (see docs/accelerators.md): `"direct"`, but on GPUs `"phases"` for
    dilated kernels, because for the gradients of `"direct"` cuDNN gets a kernel as
    large as the map, and maps with a padding of zeros.

    Args:
        x: (b, h, w, c). Sizes may be symbolic, as in an export; the choice is then
            `"direct"`, because the program may run on any backend.
        kernel: (kh, kw, c, d).
        dilation: distance between taps in cells.
        dtype: of both.
        backend: `"cpu"`, `"gpu"` or `"tpu"`; None takes the default backend.
    """
    backend = backend or jax.default_backend()
    if not all(isinstance(n, int) for n in x):
        return DIRECT
    (b, h, w, c), (kh, kw, _, d) = x, kernel
    rows, columns = (max(1, n - dilation * (k - 1)) for n, k in ((h, kh), (w, kw)))
    cells = b * rows * columns
    # The input's gradient would mostly convolve a padding, as fc6's does on crops.
    padded = h * w > 2 * rows * columns
    if backend in ("gpu", "tpu"):
        best = PHASES if backend == "gpu" and dilation > 1 else DIRECT
        rows_of_taps = dilation > 1 and kh > 3 and padded
        return best._replace(input="rows") if rows_of_taps else best
    if backend != "cpu" or 2 * kh * kw * c * d * cells < _MIN_WORK:
        return DIRECT
    if kh * kw == 1:
        return TAPS
    if min(c, d) < 64:
        best = DIRECT._replace(forward="pairs" if c * d <= 64 else "direct")
    elif dtype == jnp.float32 and 4 * cells * d > _MAX_SUMMED and kw == 3:
        best = DIRECT
    else:
        best = Choice("winograd", "winograd", "direct")
    # With several devices, examples may be on different ones.
    if 4 * h * w * c > _MAX_TRANSPOSED and jax.device_count() == 1:
        best = best._replace(kernel="examples")
    if padded or c * d > 100 * cells:
        copied = kw * cells * c * jnp.dtype(dtype).itemsize
        way: Lowering = "taps"
        if kh * copied <= _MAX_COPIED:
            way = "patches"
        elif copied <= _MAX_COPIED:
            way = "rows"
        best = best._replace(input=way)
    return best
