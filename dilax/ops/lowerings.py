"""Which lowering of a dilated convolution is fastest: a table that was measured.

`benchmarks/tune_dilated_conv.py` times every lowering on the layers of the paper's
networks and writes the table; a shape that is not in it takes the nearest one's.

Ways to compute one dilated convolution, none of which builds a dilated filter.

All give the same sums (Yu & Koltun 2016, §2, Eq. 2) of a padded input at stride 1.
Which is fastest depends on the backend and the shape, and differs between the output
and the two gradients. `LOWERINGS` says what each does.
"""

import functools
import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.ops.winograd import by_winograd, direct

Lowering = Literal["direct", "phases", "pairs", "winograd", "taps", "rows", "patches"]
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)
"""
- `"direct"` leaves it to XLA, with `rhs_dilation`.
- `"phases"` cuts the maps into dilation² interleaved ones, a batch for an undilated
  kernel (space to batch).
- `"pairs"` takes neighbouring columns of the maps, or of the phases, for one column of
  twice the channels, which suits layers of few channels. It multiplies a third more, by
  zeros.
- `"winograd"` filters three columns at a time from their values at fewer points than
  taps take (Winograd 1980, Lavin & Gray 2016): 5 products for 3 taps in place of 9, 11
  for 7 taps in place of 21. It computes in float32 at least, as accurately as others.
- `"taps"` adds up a matrix product for every tap, `"rows"` one for every row of taps,
  of what they see side by side, and `"patches"` makes one of them all. These sum in
  float32 at least.
"""

# How many matrix products a kernel of kh × kw taps takes.
_PRODUCTS: dict[str, Callable[[int, int], int]] = {
    "taps": lambda kh, kw: kh * kw,
    "rows": lambda kh, kw: kh,
    "patches": lambda kh, kw: 1,
}


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    dilation: int,
    lowering: Lowering,
    alone: bool = False,
) -> Float[Array, "b h2 w2 d"]:
    """The valid convolution.

    Args:
        x: input maps.
        kernel: taps × input maps × output maps.
        dilation: cells from one tap to the next.
        lowering: see `LOWERINGS`.
        alone: no gradients follow, so that memory may be saved in ways which they
            could not go back.
    """
    if lowering == "direct":
        return direct(x, kernel, dilation)
    if lowering in ("phases", "pairs"):
        undilated = direct if lowering == "phases" else _by_pairs
        return _by_phases(x, kernel, dilation, undilated)
    if lowering == "winograd":
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = by_winograd(x.astype(wide), kernel.astype(wide), dilation, alone)
        return y.astype(x.dtype)
    seen = _seen(x, kernel.shape, dilation, lowering)
    weights = kernel.reshape(len(seen), -1, kernel.shape[3])
    parts = zip(seen, weights, strict=True)
    return sum(_product(s, w, ((3,), (0,))) for s, w in parts).astype(x.dtype)


def input_gradient(
    gradient: Float[Array, "b h2 w2 d"],
    kernel: Float[Array, "kh kw c d"],
    x: jax.ShapeDtypeStruct,
    dilation: int,
    lowering: Lowering,
) -> Float[Array, "b h w c"]:
    """What the output's gradient becomes at an input of x's shape."""
    if lowering not in _PRODUCTS:
        return _transpose(lambda x: convolve(x, kernel, dilation, lowering), x)(
            gradient
        )
    wide = jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    count = _PRODUCTS[lowering](*kernel.shape[:2])
    weights = kernel.reshape(count, -1, kernel.shape[3])
    parts = [_product(gradient, w, ((3,), (1,))) for w in weights]
    add_up = _transpose(lambda x: _seen(x, kernel.shape, dilation, lowering), wide)
    return add_up(parts).astype(x.dtype)


def kernel_gradient(
    x: Float[Array, "b h w c"],
    gradient: Float[Array, "b h2 w2 d"],
    kernel: jax.ShapeDtypeStruct,
    dilation: int,
    lowering: Lowering,
) -> Float[Array, "kh kw c d"]:
    """What the output's gradient becomes at a kernel of that shape."""
    if lowering not in _PRODUCTS:
        return _transpose(lambda k: convolve(x, k, dilation, lowering), kernel)(
            gradient
        )
    pixels = ((0, 1, 2), (0, 1, 2))
    seen = _seen(x, kernel.shape, dilation, lowering)
    products = [_product(s, gradient, pixels) for s in seen]
    return jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)


def _transpose(linear, like):
    """The transpose of a linear function of one array."""
    return lambda gradient: jax.linear_transpose(linear, like)(gradient)[0]


def _by_phases(x, kernel, dilation: int, undilated):
    """Cell p of the output sees only cells p, p + dilation, … of the input."""
    if dilation == 1:
        return undilated(x, kernel)
    size = [
        n - dilation * (k - 1)
        for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    ]
    b, h, w = x.shape[0], *(-(-n // dilation) for n in x.shape[1:3])
    widths = [(0, m * dilation - n) for m, n in zip((h, w), x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *widths, (0, 0)))
    # The batch stays outermost: where it is divided over devices, the merged axis is
    # divided with it, and the partitioner has nothing to gather.
    x = x.reshape(b, h, dilation, w, dilation, -1).transpose(0, 2, 4, 1, 3, 5)
    y = undilated(x.reshape(b * dilation * dilation, h, w, -1), kernel)
    y = y.reshape(b, dilation, dilation, *y.shape[1:]).transpose(0, 3, 1, 4, 2, 5)
    rows, columns = (y.shape[i] * dilation for i in (1, 3))
    return y.reshape(b, rows, columns, -1)[:, : size[0], : size[1]]


def _by_pairs(x, kernel):
    """Columns 2j and 2j + 1 as one column of all their channels, in and out."""
    (b, h, w, c), (kh, kw, _, d) = x.shape, kernel.shape
    taps, columns = kw // 2 + 1, -(-(w - kw + 1) // 2)
    wide = 2 * (columns + taps - 1)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, max(0, wide - w)), (0, 0)))[:, :, :wide]
    # Output 2j + q sees input 2(j + t) + p through tap 2t + p − q.
    shifted = [
        jnp.pad(kernel, ((0, 0), (q, 2 * taps - kw - q), (0, 0), (0, 0)))
        for q in (0, 1)
    ]
    both = jnp.stack(shifted, 3).reshape(kh, taps, 2 * c, 2 * d)
    y = direct(x.reshape(b, h, wide // 2, 2 * c), both)
    return y.reshape(b, h - kh + 1, 2 * columns, d)[:, :, : w - kw + 1]


def _seen(x, shape: tuple[int, ...], dilation: int, lowering: Lowering):
    """What each tap, row of taps or all taps see of x: (b, h2, w2, n·c) each."""
    rows, columns = (
        n - dilation * (k - 1) for n, k in zip(x.shape[1:3], shape[:2], strict=True)
    )
    seen = [
        x[:, i : i + rows, j : j + columns]
        for i in range(0, dilation * shape[0], dilation)
        for j in range(0, dilation * shape[1], dilation)
    ]
    together = len(seen) // _PRODUCTS[lowering](*shape[:2])
    starts = range(0, len(seen), together)
    return [jnp.concatenate(seen[i : i + together], -1) for i in starts]


def _product(a, b, axes):
    """A matrix product over these axes, accumulated in float32 at least."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wide)


# What taps see side by side, in bytes: more gives way to a lowering that lays out less.
_MOST_COPIED = 2**28
# Operations below which nothing is to be gained, and direct compiles fastest.
_LEAST_WORK = 10**8


class Choice(NamedTuple):
    """The lowering of each pass.

    Attributes:
        forward: of the output.
        input: of the gradient by the input.
        kernel: of the gradient by the kernel.
    """

    forward: Lowering
    input: Lowering
    kernel: Lowering


DIRECT = Choice("direct", "direct", "direct")
PHASES = Choice("phases", "phases", "phases")


def choose(
    x: tuple[Any, ...],
    kernel: tuple[int, ...],
    dilation: int,
    dtype: DTypeLike,
    backend: str | None = None,
) -> Choice:
    """The fastest lowerings for a convolution of these shapes.

    Args:
        x: (b, h, w, c); sizes may be symbolic, as in an export, which takes
            `"direct"`: it may run anywhere.
        kernel: (kh, kw, c, d).
        dilation: cells from one tap to the next.
        dtype: of both.
        backend: `"cpu"`, `"gpu"` or `"tpu"`; None takes the default backend. One that
            was not measured takes `"direct"`, but no GPU for a dilated kernel: XLA was
            seen to build the dilated filter there, which phases never do.
    """
    backend = backend or jax.default_backend()
    if not all(isinstance(n, int) for n in x):
        return DIRECT
    rows = _rows(backend, jnp.dtype(dtype).name)
    if not rows:
        return PHASES if backend == "gpu" and dilation > 1 else DIRECT
    (b, h, w, c), (kh, kw, _, d) = x, kernel
    cells = b * max(1, h - dilation * (kh - 1)) * max(1, w - dilation * (kw - 1))
    if 2 * kh * kw * c * d * cells < _LEAST_WORK:
        return DIRECT
    place = _place(kh * kw, c, d, dilation, cells)
    nearest = min(rows, key=lambda row: math.dist(row[0], place))[1]
    one = cells * c * jnp.dtype(dtype).itemsize
    return Choice(*[_affordable(way, kh, kw, one) for way in nearest])


def _affordable(lowering: Lowering, kh: int, kw: int, bytes_of_a_tap: int) -> Lowering:
    if lowering == "patches" and kh * kw * bytes_of_a_tap > _MOST_COPIED:
        lowering = "rows"
    if lowering == "rows" and kw * bytes_of_a_tap > _MOST_COPIED:
        lowering = "taps"
    return lowering


@functools.cache
def _rows(backend: str, dtype: str) -> list[tuple[tuple[float, ...], Choice]]:
    """Place and choice of every row that was measured."""
    file = resources.files("dilax.ops") / "lowerings.json"
    return [
        (_row_place(row), Choice(row["forward"], row["input"], row["kernel"]))
        for row in json.loads(file.read_text("utf-8"))
        if (row["backend"], row["dtype"]) == (backend, dtype)
    ]


def _row_place(row: dict[str, Any]) -> tuple[float, ...]:
    taps, (c, d) = row["taps"] ** 2, row["channels"]
    return _place(taps, c, d, row["dilation"], row["cells"])


def _place(
    taps: int, channels: int, out: int, dilation: int, cells: int
) -> tuple[float, ...]:
    """Logarithms, so that distances are ratios; the number of taps counts most."""
    return (
        4 * math.log2(taps),
        math.log2(channels),
        math.log2(out),
        math.log2(dilation) / 2,
        math.log2(cells) / 4,
    )
