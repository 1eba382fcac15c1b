"""The Gaussian filter as it is defined, pair by pair (Krähenbühl & Koltun 2011, §3).

N² kernel values are worked out in blocks and forgotten, so that memory grows with N and
time with N². Faster filters are measured against this one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float


@struct.dataclass
class ExactFilter:
    """Σ_j exp(−½‖f_i − f_j‖²) v_j, the point itself included.

    Symmetric: its transpose is itself. Gradients reach the values and the features, and
    hold no more than a block either; second derivatives are not defined.

    Attributes:
        features: a point's coordinates, each divided by its bandwidth.
        valid: points that take part; the others give nothing and receive 0. None means
            all.
        rows: how many points are written at once.
        columns: how many are read at once; rows × columns kernel values are held.

    Example:
        >>> filter = ExactFilter(jnp.array([[0.0], [1.0], [50.0]]))
        >>> filter(jnp.array([[1.0], [0.0], [2.0]]))[:, 0].tolist()
        [1.0, 0.606..., 2.0]

    Source: Krähenbühl & Koltun 2011, §3, equation 7.
    """

    features: Float[Array, "n d"]
    valid: Bool[Array, "n"] | None = None
    rows: int = struct.field(pytree_node=False, default=256)
    columns: int = struct.field(pytree_node=False, default=1024)

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Filters every column of `values`."""
        shape = min(self.rows, len(values)), min(self.columns, len(values))
        if self.valid is None:
            return _filter(self.features, values, *shape)
        inside = self.valid[:, None]
        values = jnp.where(inside, values, 0)
        return jnp.where(inside, _filter(self.features, values, *shape), 0)


def _pairs(left: Float[Array, "r d"], right: Float[Array, "c d"]):
    """The kernel of all pairs (r, c), by differences, which do not cancel."""
    pairs = zip(left.T, right.T, strict=True)
    distance = sum(((a[:, None] - b) ** 2 for a, b in pairs), jnp.zeros((), left.dtype))
    return jnp.exp(-0.5 * distance)


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _sum_over_blocks(term: Callable, written: Any, read: Any, rows: int, columns: int):
    """Σ of term(rows of `written`, columns of `read`) over the blocks of columns."""
    count = len(jax.tree.leaves(written)[0])
    read = _blocks(read, columns)

    def write(block):
        first = jax.tree.map(lambda x: x[0], read)
        empty = jax.tree.map(jnp.zeros_like, jax.eval_shape(term, block, first))
        return lax.scan(lambda s, other: (s + term(block, other), None), empty, read)[0]

    out = lax.map(write, _blocks(written, rows))
    return out.reshape(-1, out.shape[-1])[:count]


def _blocks(tree: Any, size: int) -> Any:
    """(n, …) → (⌈n / size⌉, size, …), filled up with zeros."""

    def split(x):
        padding = [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, tree)


def _filter_plain(features, values, rows, columns):
    def term(left, right):
        return _product(_pairs(left, right[0]), right[1])

    return _sum_over_blocks(term, features, (features, values), rows, columns)


_filter = jax.custom_vjp(_filter_plain, nondiff_argnums=(2, 3))


def _forward(features, values, rows, columns):
    return _filter_plain(features, values, rows, columns), (features, values)


def _backward(rows, columns, saved, cotangent):
    """∂/∂f_i = Σ_j K_ij (g_i·v_j + v_i·g_j) (f_j − f_i); the filter is symmetric."""
    features, values = saved

    def term(left, right):
        (f, v, g), (f2, v2, g2) = left, right
        slope = _pairs(f, f2) * (_product(g, v2.T) + _product(v, g2.T))
        return _product(slope, f2) - slope.sum(1, keepdims=True) * f

    points = (features, values, cotangent)
    slopes = _sum_over_blocks(term, points, points, rows, columns)
    return slopes, _filter_plain(features, cotangent, rows, columns)


_filter.defvjp(_forward, _backward)
