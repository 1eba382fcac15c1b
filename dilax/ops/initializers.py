"""Identity initialization of context modules (Yu & Koltun 2016, Eq. 4 and Eq. 5).

Random initialization did not help the context module (§3). These kernels make each
layer pass its input on, as Le et al. (2015) initialize recurrent networks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def identity_init(groups: int, sigma: float = 0.0) -> Callable:
    """Return an initializer whose kernels pass grouped feature maps on unchanged.

    With c_i input and c_{i+1} output maps, both multiples of C = `groups` (Eq. 5):

        k_b(t, a) = C / c_{i+1}   at the centre tap where ⌊aC/c_i⌋ = ⌊bC/c_{i+1}⌋,
                    ε ~ N(0, σ²)  elsewhere.

    Eq. 4 is the case c_i = c_{i+1} = C with σ = 0. Each layer preserves the sum of a
    group's maps, so the gain of a stack telescopes to 1: at initialization without
    noise, a stack with ReLU returns max(0, x).

    Args:
        groups: C, the number of classes.
        sigma: σ, the standard deviation of the noise, small compared with C / c_{i+1}.
            As in the released builder, noise is drawn for the whole kernel before the
            matching centre taps are overwritten. 0 means no noise.

    Returns:
        `init(key, shape, dtype)` for HWIO shapes with odd kernel sides.

    Raises:
        ValueError: from the returned function, if channels are not multiples of
            `groups` or a kernel side is even.

    Example:
        >>> kernel = identity_init(2)(jax.random.key(0), (3, 3, 2, 4), jnp.float32)
        >>> kernel[1, 1].tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]

    Source: paper §3, Eq. 4 and Eq. 5; the release's network builder.
    """

    def init(key: jax.Array, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
        del out_sharding
        kh, kw, c_in, c_out = shape
        if c_in % groups or c_out % groups:
            raise ValueError(
                f"identity_init: {c_in} -> {c_out} channels are not both multiples of "
                f"groups={groups}"
            )
        if not (kh % 2 and kw % 2):
            raise ValueError(f"identity_init: a {kh}x{kw} kernel has no centre tap")
        a = np.arange(c_in) * groups // c_in
        b = np.arange(c_out) * groups // c_out
        centre = np.zeros(shape, np.float32)
        centre[kh // 2, kw // 2] = (a[:, None] == b[None, :]) * (groups / c_out)
        noise = sigma * jax.random.normal(key, shape, dtype) if sigma else 0.0
        return jnp.where(centre != 0, jnp.asarray(centre, dtype), noise)

    return init
