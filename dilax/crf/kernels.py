"""What a dense CRF knows of an image: its two kernels (Krähenbühl & Koltun 2011, §3).

The spatial ("smoothness") kernel sees positions, the bilateral ("appearance") kernel
positions and colours; each is normalised as the reference implementation offers.
"""

import math
from typing import Literal

import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from dilax.crf.filtering import Filter

Normalization = Literal["symmetric", "none", "before", "after"]
_TINY = 1e-20


@struct.dataclass
class Kernel:
    """A filter between two scalings of the pixels: after · filter(before · values).

    Attributes:
        filter: the filter.
        before: factors of what goes in; None means 1.
        after: factors of what comes out; None means 1.
    """

    filter: Filter
    before: Float[Array, "n"] | None = None
    after: Float[Array, "n"] | None = None

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """The messages of all pixels, each pixel's own included."""
        out = self.filter(_scaled(values, self.before))
        return _scaled(out, self.after)

    def own_weight(self) -> Float[Array, "n"] | float:
        """How much of a pixel's message is its own, where the filter is exact."""
        factors = [f for f in (self.before, self.after) if f is not None]
        return math.prod(factors, start=1.0)


def normalize(
    filter: Filter,
    normalization: Normalization,
    points: int,
    valid: Bool[Array, "n"] | None = None,
) -> Kernel:
    """The filter with the normalisation n_i = Σ_j k(i, j) of the reference code.

    `"symmetric"` divides by √n before and after, `"before"` and `"after"` by n on that
    side, `"none"` nowhere.

    Args:
        filter: the filter.
        normalization: see above.
        points: n, how many values it takes.
        valid: points that count; the others are not scaled. None means all.
    """
    if normalization == "none":
        return Kernel(filter)
    # Behind a barrier: with the option of `dilax.ops.jit`, XLA's CPU backend (jaxlib
    # 0.10.2) multiplies matrices by constant ones wrongly.
    ones = lax.optimization_barrier(jnp.ones((points, 1)))
    norm = filter(ones)[:, 0] + _TINY
    if valid is not None:
        norm = jnp.where(valid, norm, 1)
    if normalization == "symmetric":
        return Kernel(filter, norm**-0.5, norm**-0.5)
    before = normalization == "before"
    return Kernel(filter, 1 / norm if before else None, None if before else 1 / norm)


def spatial_features(height: int, width: int, sigma: ArrayLike) -> Float[Array, "n 2"]:
    """(x, y) / sigma of the pixels of a grid, row by row."""
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([x, y], -1).reshape(-1, 2) / jnp.asarray(sigma)


def bilateral_features(
    image: Num[Array, "h w c"], sigma_xy: ArrayLike, sigma_rgb: ArrayLike
) -> Float[Array, "n d"]:
    """(x, y) / sigma_xy and colours / sigma_rgb, row by row; d = 2 + c."""
    height, width, channels = image.shape
    positions = spatial_features(height, width, sigma_xy)
    colours = image.reshape(-1, channels) / jnp.asarray(sigma_rgb)
    dtype = jnp.result_type(positions, colours)
    return jnp.concatenate([positions.astype(dtype), colours.astype(dtype)], 1)


def _scaled(values: Float[Array, "n k"], factors: Float[Array, "n"] | None):
    return values if factors is None else values * factors[:, None]
