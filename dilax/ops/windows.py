"""Windows on maps at a stride: what pools are made of."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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
