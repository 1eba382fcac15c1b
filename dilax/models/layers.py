"""The one layer that every model here is made of: a dilated convolution with a bias."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.ops import dilated_conv
from dilax.ops.dilated_conv import Padding


class DilatedConv(nn.Module):
    """`dilated_conv` with parameters `kernel` (HWIO) and `bias`.

    Attributes:
        features: output maps.
        kernel_size: the kernel's side in taps.
        dilation: distance between taps in cells.
        padding: as in `dilated_conv`.
        kernel_init: the kernel's initializer; biases start at 0.
        dtype: of the computation; parameters are float32.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    padding: Padding = "valid"
    kernel_init: Callable = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = (jnp.asarray(a, self.dtype) for a in (x, kernel, bias))
        return (
            dilated_conv(x, kernel, dilation=self.dilation, padding=self.padding) + bias
        )
