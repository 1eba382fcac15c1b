"""Winograd's minimal filtering along the rows of dilated convolutions.

Three neighbouring outputs of a row and r taps are polynomials' product, which is known
from its values at r + 2 points: r + 2 products of channels in place of 3·r. Cells are
neighbours here if they are `dilation` columns apart. More than four taps are taken as
two kernels, since each point more costs digits.

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
_MOST_TAPS = 4
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # and infinity; few, small, exact in binary


def direct(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    dilation: int | tuple[int, int] = 1,
    stride: int = 1,
) -> Float[Array, "b h2 w2 d"]:
    """The valid convolution as XLA computes it."""
    both = (dilation, dilation) if isinstance(dilation, int) else dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding="VALID",
        rhs_dilation=both,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def by_winograd(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    dilation: int,
    ordered: bool = False,
) -> Float[Array, "b h2 w2 d"]:
    """The valid convolution, by minimal filtering of every row of the kernel.

    Args:
        x: input maps.
        kernel: taps × input maps × output maps.
        dilation: cells from one tap to the next.
        ordered: make a point's weights when the point before is done, and hold no more
            than one's; JAX cannot transpose that.
    """
    (b, h, w, _), (kh, kw, _, d) = x.shape, kernel.shape
    rows, columns = h - dilation * (kh - 1), w - dilation * (kw - 1)
    period = _OUTPUTS * dilation
    groups = -(-columns // period)
    wide = (groups + 1) * period + dilation * kw
    x = jnp.pad(x, ((0, 0), (0, 0), (0, wide - w), (0, 0)))
    outputs: list[list[jax.Array]] = [[] for _ in range(_OUTPUTS)]
    for first in range(0, kw, _MOST_TAPS):
        taps = kernel[:, first : first + _MOST_TAPS]
        of_outputs, of_taps, of_cells = transforms(taps.shape[1])
        cells = [_every(x, first + j, dilation, groups) for j in range(len(of_cells))]
        for point in range(len(of_cells)):
            values = _weighted(of_cells[point], cells)
            weights = _weighted(of_taps[point], [*taps.swapaxes(0, 1)])
            product = direct(values, weights[:, None], (dilation, 1))
            if ordered:
                product, kernel = lax.optimization_barrier((product, kernel))
                taps = kernel[:, first : first + _MOST_TAPS]
            for i, factor in enumerate(of_outputs[:, point]):
                outputs[i] += [_times(factor, product)] if factor else []
    sums = [_sum(parts).reshape(b, rows, groups, dilation, d) for parts in outputs]
    return jnp.stack(sums, 3).reshape(b, rows, groups * period, d)[:, :, :columns]


@functools.cache
def transforms(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (outputs × n), G (n × taps) and B (n × n): y = A ((G k) ⊙ (B x)).

    y is the correlation of taps k with n = taps + outputs − 1 cells x. By
    transposition of the product of two polynomials, whose values at n points (rows of
    Vandermonde matrices, the last at infinity) are products of theirs.

    Args:
        taps: of the kernel's row, 1 to 4.

    Example:
        >>> a, g, b = transforms(3)
        >>> k, x = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 2.0, 1.0, 1.0])
        >>> np.round(a @ ((g @ k) * (b @ x)), 12).tolist()
        [7.0, 7.0, 7.0]
    """
    count = taps + _OUTPUTS - 1
    values = [_vandermonde(count, degree) for degree in (_OUTPUTS, taps, count)]
    cells = np.linalg.inv(values[2]).T
    scale = np.exp2(np.round(np.log2(np.abs(cells).max(1, keepdims=True))))
    return values[0].T, values[1] * scale, cells / scale


def _vandermonde(points: int, coefficients: int) -> np.ndarray:
    """What polynomials are at so many points, from their coefficients."""
    finite = np.vander(_POINTS[: points - 1], coefficients, increasing=True)
    return np.vstack([finite, np.eye(coefficients)[-1]])


def _every(x, j: int, dilation: int, groups: int):
    """Columns j, j + 3, … in units of `dilation`: (b, h, groups · dilation, c)."""
    b, h, _, c = x.shape
    part = x[:, :, j * dilation : (j + groups * _OUTPUTS) * dilation]
    part = part.reshape(b, h, groups, _OUTPUTS * dilation, c)[:, :, :, :dilation]
    return part.reshape(b, h, groups * dilation, c)


def _weighted(factors, arrays):
    """The sum of arrays times factors, without those that are zero."""
    pairs = zip(factors, arrays, strict=True)
    return _sum([_times(factor, array) for factor, array in pairs if factor])


def _sum(arrays: list[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, arrays)


def _times(factor: float, array):
    return array if factor == 1 else array * np.asarray(factor, array.dtype)
