"""Gaussian filters in d dimensions (Krähenbühl & Koltun 2011, §3).

A filter is a pytree that is called on values (n, k) and returns (n, k). It contains
what depends on the features alone.

- `ExactFilter` sums all pairs, as defined. It computes the N² kernel values in blocks,
  so that memory grows with N only. Faster filters are measured against it.
- `GridFilter` is the spatial kernel over an image's grid: exp(−½(Δx² + Δy²)/σ²) is a
  product of a kernel of the rows and one of the columns (equation 3), so two passes of
  one-dimensional filters give the exact sum.
- `LatticeFilter` is in `dilax.crf.lattice`.

A `Kernel` is a filter and its normalization.
"""

import functools
import math
from typing import Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from dilax.crf.lattice import build_lattice


@struct.dataclass
class ExactFilter:
    """Σ_j exp(−½‖f_i − f_j‖²) v_j, the point itself included.

    The filter is symmetric: it is its own transpose. Gradients reach the values and the
    features, also block by block.

    Attributes:
        features: a point's coordinates, each divided by its bandwidth.
        valid: points that take part; the others add nothing and receive 0. None means
            all.
        rows: how many points are written at once.
        columns: how many points are read at once. Memory holds rows × columns kernel
            values.

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
        """Filter every column of `values`."""
        shape = min(self.rows, len(values)), min(self.columns, len(values))
        if self.valid is None:
            return _filter(self.features, values, *shape)
        inside = self.valid[:, None]
        values = jnp.where(inside, values, 0)
        return jnp.where(inside, _filter(self.features, values, *shape), 0)


_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _pairs(left: Float[Array, "r d"], right: Float[Array, "c d"]):
    """Return the kernel of all pairs (r, c), by differences, which do not cancel."""
    pairs = zip(left.T, right.T, strict=True)
    distance = sum(((a[:, None] - b) ** 2 for a, b in pairs), jnp.zeros((), left.dtype))
    return jnp.exp(-0.5 * distance)


def _blocks(x: Float[Array, "n c"], size: int) -> Float[Array, "b s c"]:
    """Return (⌈n / size⌉, size, c), filled up with zeros."""
    return jnp.pad(x, ((0, -len(x) % size), (0, 0))).reshape(-1, size, x.shape[1])


def _filter(
    features: Float[Array, "n d"], values: Float[Array, "n k"], rows: int, columns: int
) -> Float[Array, "n k"]:
    """Sum rows × columns kernel values at a time, also in the reverse pass."""
    read = _blocks(features, columns), _blocks(values, columns)

    @jax.checkpoint
    def write(points):
        @jax.checkpoint
        def add(total, block):
            return total + _matmul(_pairs(points, block[0]), block[1]), None

        dtype = jnp.result_type(features, values)
        empty = jnp.zeros((len(points), values.shape[1]), dtype)
        return lax.scan(add, empty, read)[0]

    out = lax.map(write, _blocks(features, rows))
    return out.reshape(-1, values.shape[1])[: len(values)]


REACH = 5.0
"""Bandwidths after which the kernel is cut: e^−12.5 = 4e-6 of its peak."""


@struct.dataclass
class GridFilter:
    """Σ over a grid's pixels of exp(−½ distance²/σ²) v, with nothing outside the grid.

    It runs as products with banded matrices, `2·radius` pixels at a time. On two CPU
    cores, this takes half the time of sums of shifted maps, and a quarter of the time
    of products with whole matrices.

    Attributes:
        sigma: bandwidth in pixels.
        valid: pixels that take part; the others add nothing. None means all.
        height: rows of the grid.
        width: columns of the grid.
        radius: pixels after which the kernel is cut; None cuts nowhere. A cut at r·σ
            leaves out at most 4·(1 − Φ(r)) of the kernel's sum, where Φ is the normal
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
        """Filter every column of `values`, whose pixels are row by row."""
        if self.valid is not None:
            values = jnp.where(self.valid[:, None], values, 0)
        maps = values.reshape(self.height, self.width, -1)
        for _ in range(2):  # each pass filters the first axis and exchanges the two
            rows = self._filter_axis(maps.reshape(len(maps), -1))
            maps = jnp.swapaxes(rows.reshape(maps.shape), 0, 1)
        return maps.reshape(values.shape)

    def _filter_axis(self, x: Float[Array, "n c"]):
        n, band = len(x), 2 * (self.radius or 0)
        if not band or 2 * band >= n:  # one matrix
            return _matmul(self._kernel(jnp.arange(n)[:, None] - jnp.arange(n), x), x)
        # Bands of 2·radius pixels, each from the 4·radius that it sees. Wider bands,
        # batched products, and slices without padding were no faster.
        count = -(-n // band)
        padded = jnp.pad(x, ((band // 2, count * band - n + band // 2), (0, 0)))
        distance = jnp.arange(2 * band) - band // 2 - jnp.arange(band)[:, None]
        kernel = self._kernel(distance, x)
        seen = (padded[i : i + 2 * band] for i in range(0, count * band, band))
        return jnp.concatenate([_matmul(kernel, part) for part in seen])[:n]

    def _kernel(self, distance, x):
        weight = jnp.exp(-0.5 * (distance.astype(x.dtype) / self.sigma) ** 2)
        return jnp.where(abs(distance) > (self.radius or math.inf), 0, weight)


def cut_radius(sigma: float) -> int:
    """Return at least `REACH`·σ pixels, a power of two, so that few are compiled.

    Example:
        >>> cut_radius(3.0), cut_radius(3.3)
        (16, 32)
    """
    return 2 ** max(2, math.ceil(math.log2(REACH * sigma)))


Method = Literal["auto", "lattice", "exact"]


@runtime_checkable
class Filter(Protocol):
    """A linear map of values (n, k) → (n, k) that approximates a Gaussian kernel."""

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]: ...


def gaussian_filter(
    values: Float[Array, "n k"], features: Float[Array, "n d"], method: Method = "auto"
) -> Float[Array, "n k"]:
    """Return Σ_j exp(−½‖f_i − f_j‖²) v_j for every point i, itself included.

    Args:
        values: what is summed, k numbers per point.
        features: each point's coordinates, divided by their bandwidths.
        method: `"exact"` takes N² steps and no more memory than N numbers; `"lattice"`
            is the permutohedral lattice, N steps and an error of a few per cent;
            `"auto"` is the lattice.

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
    """Return the filter over `features`, to call on any number of values.

    Args:
        features: as for `gaussian_filter`.
        valid: points that take part; the others add nothing. None means all.
        method: as for `gaussian_filter`.

    Example:
        >>> import jax.numpy as jnp
        >>> blur = build_filter(jnp.array([[0.0], [9.0]]), method="exact")
        >>> blur(jnp.array([[1.0], [0.0]])).round(3).tolist()
        [[1.0], [0.0]]
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: must be one of {get_args(Method)}")
    if method == "exact":
        blocks = (256, 1024) if jax.default_backend() == "cpu" else (4096, 8192)
        return ExactFilter(features, valid, *blocks)
    return build_lattice(features, valid)


Normalization = Literal["symmetric", "none", "before", "after"]
_TINY = 1e-20


@struct.dataclass
class Kernel:
    """A filter between two scalings of the pixels: after · filter(before · values).

    Attributes:
        filter: the filter.
        before: factors of what goes in, (n, 1).
        after: factors of what comes out, (n, 1).
    """

    filter: Filter
    before: Float[Array, "..."] | float = 1.0
    after: Float[Array, "..."] | float = 1.0

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return the messages to all pixels, including each pixel's own."""
        return self.filter(values * self.before) * self.after


@functools.partial(jax.jit, static_argnames=("normalization", "points"))
def normalize(
    filter: Filter,
    normalization: Normalization,
    points: int,
    valid: Bool[Array, "n"] | None = None,
) -> Kernel:
    """Normalize a filter by n_i = Σ_j k(i, j), as the reference code does.

    `"symmetric"` divides by √n before and after the filter, `"before"` and `"after"` by
    n on that side, and `"none"` not at all.

    Args:
        filter: the filter.
        normalization: see above.
        points: how many values the filter takes.
        valid: points that count; the others are not scaled. None means all.
    """
    if normalization == "none":
        return Kernel(filter)
    # Behind a barrier: with the options of `dilax.runtime.jit`, XLA's CPU backend
    # (jaxlib 0.10.2) multiplies matrices by constant ones wrongly.
    ones = lax.optimization_barrier(jnp.ones((points, 1)))
    norm = filter(ones) + _TINY
    if valid is not None:
        norm = jnp.where(valid[:, None], norm, 1)
    if normalization == "symmetric":
        return Kernel(filter, norm**-0.5, norm**-0.5)
    return Kernel(filter, **{normalization: 1 / norm})
