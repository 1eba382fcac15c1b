"""Upsampling: bilinear as in the released networks, and DUC (Wang et al. 2018, §3.1).

The released networks use two bilinear conventions that differ by half a cell (3.5
pixels at ×8), so training labels and upsampling must agree: `"top_left"` fits labels
sampled at image pixels 0, 8, 16, …; `"centred"` fits labels at full resolution.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dilax.runtime.row_shards import current_shards, refuse_shards

Convention = Literal["top_left", "centred"]


def upsample_bilinear(
    x: Float[Array, "b h w c"], factor: int = 8, convention: Convention = "top_left"
) -> Float[Array, "b h2 w2 c"]:
    """Enlarge maps `factor` times in both directions by linear interpolation.

    * `"top_left"`: output pixel p is read at p / factor in the map, as the released
      prediction script interpolates (VOC, CamVid, KITTI). Beyond the last cell, where
      that script reads past its array, the last cell is repeated.
    * `"centred"`: the transposed convolution `ctx_upsample` of Cityscapes (kernel
      2·factor, stride factor, pad factor/2, one group per class). Zeros surround the
      map, so the outermost half cell fades.

    Args:
        x: maps, NHWC.
        factor: output pixels per cell along each axis; even for `"centred"`.
        convention: see above.

    Returns:
        Maps of h·factor rows and w·factor columns.

    Raises:
        ValueError: if the convention is unknown or the factor does not fit it.

    Example:
        >>> x = jnp.array([0.0, 8.0]).reshape(1, 1, 2, 1)
        >>> upsample_bilinear(x)[0, 0, :, 0].tolist()[:10]
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 8.0]

    Source: the release's interpolation and its Dilation10 network definition.
    """
    # For each of the `factor` phases a sum of two neighbours, one axis after the other:
    # a grouped transposed convolution is 1000 times slower on XLA's CPU backend.
    weights = _phase_weights(factor, convention)
    edge = "edge" if convention == "top_left" else "constant"
    if shards := current_shards():

        def enlarge(x):
            return _upsample_axis(_between(x, 1, weights), 2, weights, edge)

        return shards.upsample(x, factor, edge == "edge", enlarge)
    return _upsample_axis(_upsample_axis(x, 1, weights, edge), 2, weights, edge)


def _phase_weights(factor: int, convention: Convention) -> np.ndarray:
    """(factor, 3): each phase's weights of the previous, the same and the next cell."""
    if convention == "top_left" and factor >= 1:
        offset = np.arange(factor) / factor
    elif convention == "centred" and factor >= 2 and factor % 2 == 0:
        offset = (np.arange(factor) + 0.5) / factor - 0.5
    else:
        raise ValueError(
            f"upsampling by factor={factor!r} with convention={convention!r}: "
            "the convention is 'top_left', or 'centred' with an even factor"
        )
    return np.maximum(0.0, 1.0 - np.abs(offset[:, None] - np.array([-1, 0, 1])))


def _upsample_axis(x, axis: int, weights: np.ndarray, edge: str):
    return _between(_with_ends(x, axis, edge), axis, weights)


def _between(padded, axis: int, weights: np.ndarray):
    """Enlarge all but the first and the last cell."""
    n = padded.shape[axis] - 2
    cells = [lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(3)]
    shape = [1] * (padded.ndim + 1)
    shape[axis + 1] = len(weights)
    shares = weights.astype(padded.dtype)
    terms = [
        jnp.expand_dims(cell, axis + 1) * shares[:, i].reshape(shape)
        for i, cell in enumerate(cells)
        if weights[:, i].any()
    ]
    out = functools.reduce(jnp.add, terms)
    sizes = padded.shape
    return out.reshape(*sizes[:axis], n * len(weights), *sizes[axis + 1 :])


def _with_ends(x, axis: int, edge: str):
    """Add one cell at both ends: zero, or the last one repeated."""
    if edge == "constant":
        return jnp.pad(x, [(int(a == axis),) * 2 for a in range(x.ndim)])
    # Slices: padding with mode="edge" becomes gathers where an exported size is free.
    n = x.shape[axis]
    first, last = (lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, n - 1))
    return lax.concatenate([first, x, last], axis)


def depth_to_space(
    x: Float[Array, "b h w c"], factor: int
) -> Float[Array, "b h2 w2 k"]:
    """Rearrange r² maps per class into r × r cells (dense upsampling convolution).

    y(r·i + dy, r·j + dx, class) = x(i, j, class·r² + dy·r + dx)

    Args:
        x: maps of k·r² channels.
        factor: r, output cells per cell along each axis.

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
        raise ValueError(
            f"factor={factor}: {c} channels are not a multiple of its square"
        )
    k = c // factor**2
    x = x.reshape(b, h, w, k, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * factor, w * factor, k)
