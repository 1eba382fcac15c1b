"""Pooling: ceil-mode maxima as in the released networks, averages, and unpooling.

Unpooling to the positions of the maxima is SegNet's (Badrinarayanan et al. 2015, §3).
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dilax.runtime.row_shards import current_shards, refuse_shards


def windows(
    x: Float[Array, "b h w c"],
    size: int,
    stride: int | None = None,
    padding: int = 0,
    outside: float = 0.0,
) -> list[Float[Array, "b h2 w2 c"]]:
    """Slice maps into windows: one map per position in the window, row by row.

    Args:
        x: maps, NHWC.
        size: the window's side in cells.
        stride: distance between windows in cells; None places them side by side, and
            the last one may extend beyond the edge.
        padding: cells around the map.
        outside: value of the cells outside the map.

    Returns:
        size² maps: of ⌈h / size⌉ × ⌈w / size⌉ cells without stride and padding, else of
        ⌊(h + 2·padding − size) / stride⌋ + 1 rows, and columns accordingly.

    Example:
        >>> x = jnp.arange(3.0).reshape(1, 1, 3, 1)
        >>> [m[0, 0, :, 0].tolist() for m in windows(x, 2, outside=9.0)][:2]
        [[0.0, 2.0], [1.0, 9.0]]
    """
    step = stride or size
    over = [-n % size if stride is None else padding for n in x.shape[1:3]]
    if padding or any(over):
        widths = ((0, 0), (padding, over[0]), (padding, over[1]), (0, 0))
        x = jnp.pad(x, widths, constant_values=outside)
    spans = [(n - size) // step * step + 1 for n in x.shape[1:3]]
    # lax.slice: indices would become gathers where an exported size is free.
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + spans[0], j + spans[1], x.shape[3]),
            (1, step, step, 1),
        )
        for i in range(size)
        for j in range(size)
    ]


def max_pool(
    x: Float[Array, "b h w c"],
    size: int = 2,
    stride: int | None = None,
    padding: int = 0,
) -> Float[Array, "b h2 w2 c"]:
    """Max pooling in ceil mode: the last window may extend beyond the edge.

    Floor mode would drop the last row and column of odd maps; KITTI's tile of 1640
    pixels would give 158 cells instead of the release's 159. With a stride or padding,
    as in ResNets and DeepLab, windows stay inside the padded map, as in PyTorch.

    If several cells of a window are the largest, the first one gets the gradient, as in
    Caffe and PyTorch; with a stride or padding, they share it.

    Args:
        x: maps, NHWC.
        size: the window's side in cells.
        stride: the distance between windows in cells; None takes `size`.
        padding: cells of −∞ around the map.

    Returns:
        Maps of ⌈h / size⌉ × ⌈w / size⌉ cells without stride and padding, else of
        ⌊(h + 2·padding − size) / stride⌋ + 1 rows, and columns accordingly.

    Example:
        >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, ..., 0].tolist()
        [[4.0, 5.0], [7.0, 8.0]]
    """
    if stride or padding:
        refuse_shards(f"a pool of stride={stride} and padding={padding}")

    def pooled(x):
        if stride or padding:
            # A maximum of strided slices: its gradient is 5 to 10 times faster on XLA's
            # CPU backend than the select-and-scatter of `lax.reduce_window`.
            cells = windows(x, size, stride, padding, -jnp.inf)
            return functools.reduce(jnp.maximum, cells)
        return _pooled(x, size)

    shards = current_shards()
    return shards.pool(x, size, pooled) if shards else pooled(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pooled(x, size: int, pairs: bool = False):
    return functools.reduce(jnp.maximum, _cells(x, size, pairs))


def _pooled_forward(x, size: int, pairs: bool):
    maxima, places = _with_places(_cells(x, size, pairs))
    return maxima, (places.astype(np.min_scalar_type(size**2 - 1)), x[:0])


def _pooled_backward(size: int, pairs: bool, residuals, gradient):
    # Seven times faster on XLA's CPU backend than the gradients of strided slices.
    places, like = residuals
    if not pairs:
        spread = _spread(gradient, places, size)
        return (spread[:, : like.shape[1], : like.shape[2]],)
    cells = [jnp.where(places == n, gradient, 0) for n in range(4)]
    rows = [jnp.concatenate(cells[n : n + 2], -1) for n in (0, 2)]
    return (_interleaved(rows, 2, 1),)


_pooled.defvjp(_pooled_forward, _pooled_backward)


def max_pool_pairs(x: Float[Array, "b h w c2"]) -> Float[Array, "b h2 w c"]:
    """Max pooling of 2×2 cells where columns 2j and 2j + 1 are one column of 2c maps.

    Args:
        x: maps of an even number of rows.

    Example:
        >>> max_pool_pairs(jnp.arange(4.0).reshape(1, 2, 1, 2)).tolist()
        [[[[3.0]]]]
    """
    return _pooled(x, 2, True)


def _cells(x, size: int, pairs: bool):
    """Return one map per position in a window, row by row."""
    if not pairs:
        return windows(x, size, outside=-jnp.inf)
    c = x.shape[3] // 2
    return [x[:, i::2, :, j : j + c] for i in (0, 1) for j in (0, c)]


def _with_places(cells: list):
    """Return the maxima of cells, and the index of the first of the largest."""
    maxima, places = cells[0], jnp.zeros(cells[0].shape, jnp.int32)
    for n, cell in enumerate(cells[1:], 1):
        places = jnp.where(cell > maxima, n, places)
        maxima = jnp.maximum(maxima, cell)
    return maxima, places


def _spread(x, places, size: int):
    """Put each cell at its place in a window of size² cells, with zeros elsewhere."""
    if jax.default_backend() == "tpu":  # repeated cells would be copied to memory
        cells = [jnp.where(places == n, x, 0) for n in range(size * size)]
        return _interleaved(cells, size, size)
    b, h, w, c = x.shape
    window = jnp.arange(size * size, dtype=places.dtype).reshape(size, 1, size, 1)
    here = places[:, :, None, :, None] == window
    grid = jnp.where(here, x[:, :, None, :, None], 0)
    return grid.reshape(b, h * size, w * size, c)


def _interleaved(cells: list, rows: int, columns: int):
    """Interleave maps, one per position in a window: the sum of padded maps."""
    apart = [[(i, n - 1 - i, n - 1) for i in range(n)] for n in (rows, columns)]
    zero, no = jnp.zeros((), cells[0].dtype), (0, 0, 0)
    places = zip(cells, itertools.product(*apart), strict=True)
    grids = (lax.pad(cell, zero, (no, *place, no)) for cell, place in places)
    return functools.reduce(jnp.add, grids)


def average_pool(x: Float[Array, "b h w c"], size: int = 3) -> Float[Array, "b h w c"]:
    """Average pooling at stride 1; zeros outside the map count as cells.

    Args:
        x: maps, NHWC.
        size: the window's side in cells, an odd number.

    Raises:
        ValueError: if the size is even.

    Example:
        >>> average_pool(9 * jnp.ones((1, 1, 3, 1)))[0, 0, :, 0].tolist()
        [2.0, 3.0, 2.0]
    """
    refuse_shards("an average pool")
    if size % 2 == 0:
        raise ValueError(f"size={size}: must be odd")
    cells = windows(x, size, 1, size // 2)
    return functools.reduce(jnp.add, cells) / size**2


def max_pool_with_places(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h2 w2 c"], Int[Array, "b h2 w2 c"]]:
    """Max pooling of 2×2 cells that also returns the position of each maximum.

    Args:
        x: maps, NHWC.

    Returns:
        The maxima, and their positions 0 to 3 in the window, row by row. Among equal
        cells the first one counts and gets the whole gradient.

    Example:
        >>> x = jnp.array([[1.0, 2.0, 5.0], [4.0, 3.0, 5.0]]).reshape(1, 2, 3, 1)
        >>> [a[0, 0, :, 0].tolist() for a in max_pool_with_places(x)]
        [[4.0, 5.0], [2, 0]]

    Source: Badrinarayanan et al. 2015, §3.
    """
    refuse_shards("a pool with places")
    _, places = _with_places(windows(x, 2, outside=-jnp.inf))
    return _pooled(x, 2), places


def unpool(
    x: Float[Array, "b h2 w2 c"],
    places: Int[Array, "b h2 w2 c"],
    size: tuple,
) -> Float[Array, "b h w c"]:
    """Put each cell at the position of its maximum, with zeros elsewhere.

    Args:
        x: maps, NHWC.
        places: positions from `max_pool_with_places`.
        size: (h, w) of the maps before pooling; may be symbolic, as in an export.

    Example:
        >>> x = jnp.array([4.0, 5.0]).reshape(1, 1, 2, 1)
        >>> unpool(x, jnp.array([2, 0]).reshape(1, 1, 2, 1), (2, 3))[0, ..., 0].tolist()
        [[0.0, 0.0, 5.0], [4.0, 0.0, 0.0]]

    Source: Badrinarayanan et al. 2015, §3.
    """
    refuse_shards("unpooling")
    return _spread(x, places, 2)[:, : size[0], : size[1]]
