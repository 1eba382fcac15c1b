"""Max pooling with ceil-mode sizes, as the released networks pool, and its reversal.

Windows on maps at a stride: what pools are made of.
"""

import functools

import jax.numpy as jnp
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
    """The cells of all windows, one map for each place in the window, row by row.

    Args:
        x: maps, NHWC.
        size: the window's side in cells.
        stride: distance between windows in cells; None sets them side by side, and
            the last may hang over the edge.
        padding: cells around the map.
        outside: what stands outside the map.

    Returns:
        size² maps. Without stride and padding of ⌈h / size⌉ rows and ⌈w / size⌉
        columns; with them ⌊(h + 2·padding − size) / stride⌋ + 1.

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
    """Max pooling over neighbouring windows; the last may hang over the edge (ceil).

    Floor mode would drop the last row and column of odd maps, and KITTI's 1640-pixel
    tile would give 158 cells where the release gives 159. Where windows overlap, as in
    ResNets and DeepLab, only those count that lie on the padded map, as PyTorch has it.

    Written as a maximum of strided slices: its gradient is 5 to 10 times faster on
    XLA's CPU backend than the select-and-scatter of a pooling window. Where several
    cells of a window are the largest, they share the gradient; Caffe gives it to one.

    Args:
        x: maps, NHWC.
        size: the window's side in cells.
        stride: the distance between windows in cells; None is their size.
        padding: cells around the map that are less than all others.

    Returns:
        Without stride and padding ⌈h / size⌉ rows and ⌈w / size⌉ columns; with them
        ⌊(h + 2·padding − size) / stride⌋ + 1.

    Example:
        >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, ..., 0].tolist()
        [[4.0, 5.0], [7.0, 8.0]]
    """
    if stride or padding:
        refuse_shards(f"a pool of stride={stride} and padding={padding}")
    pooled = functools.partial(_pooled, size=size, stride=stride, padding=padding)
    shards = current_shards()
    return shards.pool(x, size, pooled) if shards else pooled(x)


def _pooled(x, size: int, stride: int | None, padding: int):
    cells = windows(x, size, stride, padding, -jnp.inf)
    return functools.reduce(jnp.maximum, cells)


def average_pool(x: Float[Array, "b h w c"], size: int = 3) -> Float[Array, "b h w c"]:
    """Average pooling at stride 1; zeros stand outside the map, and count.

    Args:
        x: maps, NHWC.
        size: the window's side in cells, an odd number.

    Raises:
        ValueError: if it is even.

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
    """As `max_pool` of 2×2 cells, and where each maximum stood in its window.

    Args:
        x: maps, NHWC.

    Returns:
        The maxima, and their places 0 to 3, row by row; the first of equal ones, which
        alone gets the gradient.

    Example:
        >>> x = jnp.array([[1.0, 2.0, 5.0], [4.0, 3.0, 5.0]]).reshape(1, 2, 3, 1)
        >>> [a[0, 0, :, 0].tolist() for a in max_pool_with_places(x)]
        [[4.0, 5.0], [2, 0]]

    Source: Badrinarayanan et al. 2015, §3.
    """
    refuse_shards("a pool with places")
    cells = windows(x, 2, outside=-jnp.inf)
    places = jnp.argmax(jnp.stack(cells), 0)
    kept = [jnp.where(places == n, cell, 0) for n, cell in enumerate(cells)]
    return functools.reduce(jnp.add, kept), places


def unpool(
    x: Float[Array, "b h2 w2 c"],
    places: Int[Array, "b h2 w2 c"],
    size: tuple,
) -> Float[Array, "b h w c"]:
    """Sets each cell where its maximum stood, among zeros.

    Args:
        x: maps, NHWC.
        places: of `max_pool_with_places`.
        size: (h, w) of what was pooled; they may be symbolic, as in an export.

    Example:
        >>> x = jnp.array([4.0, 5.0]).reshape(1, 1, 2, 1)
        >>> unpool(x, jnp.array([2, 0]).reshape(1, 1, 2, 1), (2, 3))[0, ..., 0].tolist()
        [[0.0, 0.0, 5.0], [4.0, 0.0, 0.0]]

    Source: Badrinarayanan et al. 2015, §3.
    """
    refuse_shards("unpooling")
    b, h, w, c = x.shape
    cells = jnp.stack([jnp.where(places == n, x, 0) for n in range(4)], 3)
    grid = cells.reshape(b, h, w, 2, 2, c).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, c)
    return grid[:, : size[0], : size[1]]
