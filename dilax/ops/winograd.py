"""Winograd's minimal filtering along the rows of dilated convolutions.

Three neighbouring outputs of a row with r taps follow from a product of two
polynomials, which is determined by its values at r + 2 points: r + 2 products of
channels instead of 3·r. Cells that are `dilation` columns apart count as neighbours.
A row of more than four taps is split, because each further point costs digits.

Source: Winograd, *Arithmetic Complexity of Computations*, 1980; Lavin & Gray, *Fast
Algorithms for Convolutional Neural Networks*, CVPR 2016.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_OUTPUTS = 3
_MAX_TAPS = 4
_MIN_CHANNELS = 128  # from which on products in bfloat16 are faster
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # and infinity; few, small, exact in binary


def by_winograd(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    dilation: int,
    alone: bool = False,
) -> Float[Array, "b h2 w2 d"]:
    """Compute a valid convolution by minimal filtering of every row of the kernel.

    The products are convolutions in float32 at least. In bfloat16 and without
    gradients, those of many channels are matrix products of bfloat16 instead, which run
    at twice the rate; the transformed cells and weights are then rounded, so the error
    is about three times that of a direct sum in bfloat16.

    Args:
        x: input maps.
        kernel: taps × input maps × output maps.
        dilation: distance between taps in cells.
        alone: whether no gradients follow, so that products may be in bfloat16.
    """
    (b, h, w, c), (kh, kw, _, d) = x.shape, kernel.shape
    out, wide_type = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    in_bfloat16 = alone and out == jnp.bfloat16 and min(c, d) >= _MIN_CHANNELS
    x, kernel = x.astype(wide_type), kernel.astype(wide_type)
    rows, columns = h - dilation * (kh - 1), w - dilation * (kw - 1)
    period = _OUTPUTS * dilation
    groups = -(-columns // period)
    wide = (groups + 1) * period + dilation * kw
    x = jnp.pad(x, ((0, 0), (0, 0), (0, wide - w), (0, 0)))
    outputs: list[list[jax.Array]] = [[] for _ in range(_OUTPUTS)]
    for first in range(0, kw, _MAX_TAPS):
        taps = kernel[:, first : first + _MAX_TAPS]
        of_outputs, of_taps, of_cells = transforms(taps.shape[1])
        cells = [_every(x, first + j, dilation, groups) for j in range(len(of_cells))]
        for point in range(len(of_cells)):
            values = _weighted(of_cells[point], cells)
            weights = _weighted(of_taps[point], [*taps.swapaxes(0, 1)])
            # One column of taps per point, dilated along the rows only.
            if in_bfloat16:
                product = _matrix_products(values, weights, dilation)
            else:
                product = lax.conv_general_dilated(
                    values,
                    weights[:, None],
                    window_strides=(1, 1),
                    padding="VALID",
                    rhs_dilation=(dilation, 1),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
            for i, factor in enumerate(of_outputs[:, point]):
                outputs[i] += [_times(factor, product)] if factor else []
    sums = [_sum(parts).reshape(b, rows, groups, dilation, d) for parts in outputs]
    y = jnp.stack(sums, 3).reshape(b, rows, groups * period, d)[:, :, :columns]
    return y.astype(out)


def _matrix_products(x, kernel, dilation: int):
    """Convolve along the rows in bfloat16, and accumulate in float32."""
    taps = len(kernel)
    rows = x.shape[1] - dilation * (taps - 1)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    parts = [x[:, i * dilation : i * dilation + rows] for i in range(taps)]
    if taps > 3:  # one long product then saves more than its copies cost
        parts = [jnp.concatenate(parts, -1)]
        kernel = kernel.reshape(1, -1, kernel.shape[-1])
    contracted = (((3,), (0,)), ((), ()))
    return _sum(
        [
            lax.dot_general(p, k, contracted, preferred_element_type=jnp.float32)
            for p, k in zip(parts, kernel, strict=True)
        ]
    )


@functools.cache
def transforms(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A (outputs × n), G (n × taps), B (n × n): y = A ((G k) ⊙ (B x)).

    y is the correlation of taps k with n = taps + outputs − 1 cells x. It is the
    transpose of multiplying two polynomials by their values at n points: the rows of
    Vandermonde matrices, the last of which is the point at infinity.

    Args:
        taps: length of the kernel's row, 1 to 4.

    Example:
        >>> a, g, b = transforms(3)
        >>> k, x = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 2.0, 1.0, 1.0])
        >>> np.round(a @ ((g @ k) * (b @ x)), 12).tolist()
        [7.0, 7.0, 7.0]
    """
    count = taps + _OUTPUTS - 1

    def values(coefficients: int) -> np.ndarray:
        """Evaluate polynomials with this number of coefficients at the points."""
        finite = np.vander(_POINTS[: count - 1], coefficients, increasing=True)
        return np.vstack([finite, np.eye(coefficients)[-1]])

    cells = np.linalg.inv(values(count)).T
    # Powers of two are exact; they keep the entries of B near 1.
    scale = np.exp2(np.round(np.log2(np.abs(cells).max(1, keepdims=True))))
    return values(_OUTPUTS).T, values(taps) * scale, cells / scale


def _every(x, j: int, dilation: int, groups: int):
    """Take columns j, j + 3, … in units of `dilation`: (b, h, groups · dilation, c)."""
    b, h, _, c = x.shape
    part = x[:, :, j * dilation : (j + groups * _OUTPUTS) * dilation]
    part = part.reshape(b, h, groups, _OUTPUTS * dilation, c)[:, :, :, :dilation]
    return part.reshape(b, h, groups * dilation, c)


def _weighted(factors, arrays):
    """Sum arrays times factors, leaving out factors of zero."""
    pairs = zip(factors, arrays, strict=True)
    return _sum([_times(factor, array) for factor, array in pairs if factor])


def _sum(arrays: list[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, arrays)


def _times(factor: float, array):
    return array if factor == 1 else array * np.asarray(factor, array.dtype)
