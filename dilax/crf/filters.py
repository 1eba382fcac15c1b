"""Gaussian filtering in d dimensions, by whichever filter (Krähenbühl & Koltun, §3).

Every filter is a pytree that is called on values (n, k) and gives (n, k); what depends
on the features alone is in it already.

The Gaussian filter as it is defined, pair by pair (Krähenbühl & Koltun 2011, §3).

N² kernel values are worked out in blocks and forgotten, so that memory grows with N and
time with N². Faster filters are measured against this one.

The spatial kernel over an image's grid, one axis after the other.

exp(−½(Δx² + Δy²)/σ²) is a product of a kernel of the rows and one of the columns
(Krähenbühl & Koltun 2011, equation 3, the smoothness kernel), so two passes of
one-dimensional filters are the exact sum.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from dilax.crf.lattice import build_lattice


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


REACH = 5.0
"""Bandwidths after which the kernel is cut: e^−12.5 = 4e-6 of its peak."""


@struct.dataclass
class GridFilter:
    """Σ over a grid's pixels of exp(−½ distance²/σ²) v, with nothing outside the grid.

    Runs as products with banded matrices, `2·radius` pixels at a time: twice as fast
    as sums of shifted maps on two CPU cores, four times as products with whole
    matrices. A radius that reaches all of an axis takes the whole matrix.

    Attributes:
        sigma: bandwidth in pixels.
        valid: pixels that take part; the others give nothing. None means all.
        height: rows of the grid.
        width: columns of the grid.
        radius: pixels after which the kernel is cut; None cuts nowhere. Cutting at r·σ
            leaves out at most 4·(1 − Φ(r)) of the kernel's sum, Φ being the normal
            distribution: 1.2e-6 at 5σ.

    Example:
        >>> filter = GridFilter(jnp.array(1.0), None, height=1, width=3)
        >>> filter(jnp.array([[1.0], [0.0], [0.0]]))[:, 0].tolist()
        [1.0, 0.606..., 0.135...]
    """

    sigma: Float[Array, ""]
    valid: Bool[Array, "n"] | None
    height: int = struct.field(pytree_node=False)
    width: int = struct.field(pytree_node=False)
    radius: int | None = struct.field(pytree_node=False, default=None)

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Filters every column of `values`, whose pixels are row by row."""
        if self.valid is not None:
            values = jnp.where(self.valid[:, None], values, 0)
        rows = values.reshape(self.height, -1)
        rows = _filter_axis(rows, self.sigma, self.radius)
        columns = _transposed(rows, self.height, self.width)
        columns = _filter_axis(columns, self.sigma, self.radius)
        return _transposed(columns, self.width, self.height).reshape(values.shape)


def cut_radius(sigma: float) -> int:
    """At least `REACH`·σ pixels, and a power of two, so that few radii are compiled.

    Example:
        >>> cut_radius(3.0), cut_radius(3.3)
        (16, 32)
    """
    return 2 ** max(2, math.ceil(math.log2(REACH * sigma)))


def _transposed(x: Float[Array, "m c"], height: int, width: int):
    """(height, width·k) → (width, height·k): both passes filter the first axis."""
    return jnp.swapaxes(x.reshape(height, width, -1), 0, 1).reshape(width, -1)


def _filter_axis(x: Float[Array, "n c"], sigma: ArrayLike, radius: int | None):
    """The kernel along the first axis, whole or in bands."""
    n = len(x)
    if radius is None or 4 * radius >= n:
        distance = jnp.arange(n)[:, None] - jnp.arange(n)
        return _product_grid(_kernel(distance, sigma, radius, x.dtype), x)
    return _filter_bands(x, sigma, radius)


def _filter_bands(x: Float[Array, "n c"], sigma: ArrayLike, radius: int):
    """Bands of 2·radius pixels, each from the 4·radius that it sees."""
    n, band = len(x), 2 * radius
    count = -(-n // band)
    padded = jnp.pad(x, ((radius, count * band - n + radius), (0, 0)))
    distance = jnp.arange(2 * band) - radius - jnp.arange(band)[:, None]
    kernel = _kernel(distance, sigma, radius, x.dtype)
    seen = (padded[i : i + 2 * band] for i in range(0, count * band, band))
    return jnp.concatenate([_product_grid(kernel, part) for part in seen])[:n]


def _kernel(distance, sigma: ArrayLike, radius: int | None, dtype):
    weight = jnp.exp(-0.5 * (distance.astype(dtype) / sigma) ** 2)
    return weight if radius is None else jnp.where(abs(distance) > radius, 0, weight)


def _product_grid(kernel, x):
    return jnp.matmul(kernel, x, precision=lax.Precision.HIGHEST)


Method = Literal["auto", "lattice", "exact"]

_BLOCKS = {"cpu": (256, 1024)}
_LARGE_BLOCKS = (4096, 8192)


@runtime_checkable
class Filter(Protocol):
    """A linear map of values (n, k) → (n, k) that approximates a Gaussian kernel."""

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]: ...


def gaussian_filter(
    values: Float[Array, "n k"], features: Float[Array, "n d"], method: Method = "auto"
) -> Float[Array, "n k"]:
    """Σ_j exp(−½‖f_i − f_j‖²) v_j for every point i, itself included.

    Args:
        values: what is summed, k numbers a point.
        features: each point's coordinates, divided by their bandwidths.
        method: `"exact"` takes N² steps and no more memory than N numbers; `"lattice"`
            is the permutohedral lattice, N steps and a few per cent off; `"auto"` takes
            the lattice.

    Returns:
        The sums.

    Raises:
        ValueError: if the method is unknown, or there are not as many values as
            features.

    Example:
        >>> import jax.numpy as jnp
        >>> positions = jnp.array([[0.0], [1.0]])
        >>> gaussian_filter(jnp.ones((2, 1)), positions, "exact").tolist()
        [[1.606...], [1.606...]]

    Source: Krähenbühl & Koltun 2011, §3; Adams, Baek & Davis 2010.
    """
    if len(values) != len(features):
        raise ValueError(
            f"{len(values)} values and {len(features)} features: each point has both"
        )
    return build_filter(features, None, method)(values)


def build_filter(
    features: Float[Array, "n d"],
    valid: Bool[Array, "n"] | None = None,
    method: Method = "auto",
) -> Filter:
    """The filter over `features`, to be called on any number of values.

    Args:
        features: as for `gaussian_filter`.
        valid: points that take part; the others give nothing. None means all.
        method: as for `gaussian_filter`.

    Example:
        >>> import jax.numpy as jnp
        >>> blur = build_filter(jnp.array([[0.0], [9.0]]), method="exact")
        >>> blur(jnp.array([[1.0], [0.0]])).round(3).tolist()
        [[1.0], [0.0]]
    """
    check_method(method)
    if method == "exact":
        rows, columns = _BLOCKS.get(jax.default_backend(), _LARGE_BLOCKS)
        return ExactFilter(features, valid, rows, columns)
    return build_lattice(features, valid)


def check_method(method: str) -> None:
    """Raises ValueError if there is no such method."""
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not among {get_args(Method)}")
