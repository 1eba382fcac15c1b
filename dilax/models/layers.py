"""The layer that every model here is made of, a dilated convolution, and batch norm."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.ops import dilated_conv, strided_conv
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
        stride: input cells from one output cell to the next; above 1 see
            `strided_conv`, and neither dilation nor padding applies.
        use_bias: whether there is `bias`.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    padding: Padding = "valid"
    kernel_init: Callable = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = (jnp.asarray(a, self.dtype) for a in (x, kernel))
        if self.stride > 1:
            x = strided_conv(x, kernel, self.stride)
        else:
            x = dilated_conv(x, kernel, dilation=self.dilation, padding=self.padding)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x + jnp.asarray(bias, self.dtype)


def batch_norm(parent: nn.Module, name: str, train: bool, dtype: DTypeLike):
    """Batch normalisation of what a layer of `parent` gives (Ioffe & Szegedy 2015).

    By the batch's own statistics where the module trains, that is where `train` is set
    and the collection `batch_stats` may change; by the averages kept there otherwise. A
    frozen module is thus as it predicts.

    Args:
        parent: the module that is running.
        name: of the layer.
        train: whether the network trains.
        dtype: of the computation; parameters and statistics are float32.

    Returns:
        A linen module with `scale`, `bias`, and `mean` and `var` in `batch_stats`.
    """
    own = train and parent.is_mutable_collection("batch_stats")
    return nn.BatchNorm(not own, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)
