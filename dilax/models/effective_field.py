"""The effective receptive field: how much a cell depends on each pixel.

Luo et al. (2016), "Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks": a cell depends mostly on the middle of its receptive field.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dilax.runtime import jit


class EffectiveField(NamedTuple):
    """How much a cell depends on each pixel.

    Attributes:
        heat: (h, w) share of each pixel in the sum of squared gradients; sums to 1.
        centre: (y, x), the heat's mean, in pixels.
        spread: (σ_y, σ_x), its standard deviation, in pixels.

    Example:
        >>> field = EffectiveField(np.eye(3) / 3, (1.0, 1.0), (0.8, 0.8))
        >>> field.side(0.3), field.side(0.95)
        (1, 3)
    """

    heat: Float[np.ndarray, "h w"]
    centre: tuple[float, float]
    spread: tuple[float, float]

    def side(self, share: float = 0.95) -> int:
        """The side of the centred square that contains this share of the heat.

        It is odd, because the square is centred on the pixel nearest to the centre.
        """
        y, x = (round(c) for c in self.centre)
        rows, columns = np.indices(self.heat.shape)
        radius = np.maximum(abs(rows - y), abs(columns - x))
        within = np.cumsum(np.bincount(radius.ravel(), self.heat.ravel()))
        nearest = int(np.searchsorted(within, share * within[-1]))
        return 2 * min(nearest, len(within) - 1) + 1


def effective_field(
    network: Callable[[jax.Array], jax.Array],
    images: Float[Array | np.ndarray, "n h w c"],
    cell: tuple[int, int] | None = None,
    seed: int = 0,
) -> EffectiveField:
    """Measure the effective receptive field of a cell from gradients.

    heat(p) ∝ Σ_n Σ_c (∂(v_n · y_n) / ∂x_n(p, c))² for the cell's outputs y_n of image
    n and standard normal v_n, whose expectation sums over the outputs.

    Args:
        network: images (1, h, w, c) → maps (1, h', w', k), such as
            `lambda x: model.apply({"params": params}, x)`.
        images: as the network takes them, including margins.
        cell: (row, column) of the maps; None is the middle cell.
        seed: of v.

    Returns:
        See `EffectiveField`.

    Raises:
        ValueError: if the maps do not have that cell, or it depends on no pixel.

    Example:
        >>> from dilax.ops import dilated_conv
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> network = lambda x: dilated_conv(x, kernel, dilation=2)
        >>> field = effective_field(network, np.zeros((1, 5, 5, 1), np.float32))
        >>> np.round(field.heat[0], 3).tolist(), round(field.spread[0], 3)
        ([0.111, 0.0, 0.111, 0.0, 0.111], 1.633)
    """
    shape = jax.eval_shape(network, jax.ShapeDtypeStruct((1, *images.shape[1:]), "f4"))
    rows, columns, outputs = shape.shape[1:]
    y, x = cell or (rows // 2, columns // 2)
    if not (0 <= y < rows and 0 <= x < columns):
        raise ValueError(f"cell={cell}: the maps have {rows} x {columns} cells")

    @jit
    def squares(image, direction):
        def directed(image):
            return jnp.vdot(network(image)[0, y, x], direction)

        return jnp.sum(jax.grad(directed)(image)[0] ** 2, -1)

    rng = np.random.default_rng(seed)
    heat = np.zeros(images.shape[1:3])
    for image in images:
        direction = rng.normal(size=outputs).astype(np.float32)
        heat += np.asarray(squares(image[None], direction))
    if not heat.sum() > 0:
        raise ValueError(f"cell={(y, x)}: depends on no pixel of these images")
    return _measured(heat / heat.sum())


def _measured(heat: np.ndarray) -> EffectiveField:
    centre, spread = [], []
    for axis in (0, 1):
        share, at = heat.sum(1 - axis), np.arange(heat.shape[axis])
        mean = float(share @ at)
        centre.append(mean)
        spread.append(float(np.sqrt(share @ (at - mean) ** 2)))
    return EffectiveField(heat, (centre[0], centre[1]), (spread[0], spread[1]))
