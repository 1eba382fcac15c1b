"""Dense upsampling's rearrangement: r² maps a class become r × r as many cells.

Wang et al. (2018), "Understanding Convolution for Semantic Segmentation", §3.1.
"""

from jaxtyping import Array, Float

from dilax.ops.row_shards import refuse_shards


def depth_to_space(
    x: Float[Array, "b h w c"], factor: int
) -> Float[Array, "b h2 w2 k"]:
    """Lays the r² maps of each class out as r × r cells (DUC).

    y(r·i + dy, r·j + dx, class) = x(i, j, class·r² + dy·r + dx)

    Args:
        x: maps of k·r² channels.
        factor: r, cells along each axis that a cell becomes.

    Returns:
        Maps of h·r rows and w·r columns, k channels.

    Raises:
        ValueError: if the channels are not a multiple of r².

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(8.0).reshape(1, 1, 1, 8)
        >>> depth_to_space(x, 2)[0, :, :, 1].tolist()
        [[4.0, 5.0], [6.0, 7.0]]

    Source: Wang et al. (2018), §3.1; the channel order is that of their public code.
    """
    refuse_shards("depth_to_space")
    b, h, w, c = x.shape
    if factor < 1 or c % factor**2:
        raise ValueError(f"factor={factor}: {c} channels are no multiple of its square")
    k = c // factor**2
    x = x.reshape(b, h, w, k, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * factor, w * factor, k)
