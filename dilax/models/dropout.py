"""Dropout whose draws stay the same however a batch is spread over devices."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Dropout(nn.Module):
    """Zeroes cells with probability `rate`, and enlarges the others to make up for it.

    Every example draws from a key of its own, in the order of its cells. So rows that
    fill up the end of a map (`dilax.ops.row_shards`) change nothing before them, as
    they would with `nn.Dropout`, which draws for the whole batch at once.

    Attributes:
        rate: probability of a zero.

    Source: Srivastava et al. 2014.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h w c"]:
        if not train or not self.rate:
            return x
        key, keep = self.make_rng("dropout"), 1.0 - self.rate

        def kept(index):
            own = jax.random.fold_in(key, index)
            return jax.random.bernoulli(own, keep, x.shape[1:])

        mask = jax.vmap(kept)(jnp.arange(len(x)))
        return jnp.where(mask, x / jnp.asarray(keep, x.dtype), 0)
