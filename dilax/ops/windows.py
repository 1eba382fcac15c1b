"""Windows on maps at a stride: what pools and strided convolutions are made of."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dilax.ops.dilated_conv import dilated_conv


def windows(
    x: Float[Array, "b h w c"],
    size: int,
    stride: int,
    before: int = 0,
    outside: float = 0.0,
) -> list[Float[Array, "b h2 w2 c"]]:
    """The cells of all windows, one map for each place in the window, row by row.

    Args:
        x: maps, NHWC.
        size: the window's side in cells.
        stride: distance between windows in cells.
        before: how far the first window hangs over the top and the left.
        outside: what stands outside the map.

    Returns:
        size² maps of ⌈h / stride⌉ rows and ⌈w / stride⌉ columns.

    Example:
        >>> x = jnp.arange(3.0).reshape(1, 1, 3, 1)
        >>> [m[0, 0, :, 0].tolist() for m in windows(x, 2, 2, outside=9.0)][:2]
        [[0.0, 2.0], [1.0, 9.0]]
    """
    widths, ends = [(0, 0)], []
    for n in x.shape[1:3]:
        last = (-(-n // stride) - 1) * stride
        over = last + size - before - n  # cells that the last window hangs over
        widths.append((before, max(over, 0)))
        ends.append(last + 1)
    if any(map(any, widths)):
        x = jnp.pad(x, (*widths, (0, 0)), constant_values=outside)
    # lax.slice: indices would become gathers where an exported size is free.
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + ends[0], j + ends[1], x.shape[3]),
            (1, stride, stride, 1),
        )
        for i in range(size)
        for j in range(size)
    ]


def strided_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int
) -> Float[Array, "b h2 w2 d"]:
    """Convolves at a stride, padded by zeros as the kernel's side k is odd: ⌈h / s⌉.

    The windows' cells side by side as channels, through one 1×1 convolution: only what
    stays is computed. Output cell i stands on input cell i·stride.

    Args:
        x: input maps, NHWC.
        kernel: taps × input maps × output maps, HWIO; its side is odd.
        stride: s, input cells from one output cell to the next.

    Raises:
        ValueError: if the kernel is not square and of an odd side.

    Example:
        >>> x = jnp.arange(5.0).reshape(1, 1, 5, 1)
        >>> strided_conv(x, jnp.ones((3, 3, 1, 1)), 2)[0, 0, :, 0].tolist()
        [1.0, 6.0, 7.0]
    """
    rows, columns, c, d = kernel.shape
    if rows != columns or rows % 2 == 0:
        raise ValueError(f"kernel of {rows}x{columns}: must be square, of an odd side")
    cells = jnp.concatenate(windows(x, rows, stride, rows // 2), -1)
    return dilated_conv(cells, kernel.reshape(1, 1, rows * columns * c, d))
