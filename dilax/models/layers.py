"""The layers of the models: dilated convolutions, pools, normalization, dropout.

Dropout draws the same numbers however a batch is divided over devices.
"""

import functools
import operator
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.ops import average_pool, dilated_conv, max_pool
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
        stride: as in `dilated_conv`.
        use_bias: whether there is a bias.
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
        y = dilated_conv(
            x,
            kernel,
            dilation=self.dilation,
            stride=self.stride,
            padding=self.padding,
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return _add_bias(y, jnp.asarray(bias, self.dtype))


@jax.custom_vjp
def _add_bias(x, bias):
    return x + bias


def _bias_gradient(_, gradient):
    if jax.default_backend() != "cpu":
        return gradient, jnp.sum(gradient, (0, 1, 2))
    # XLA's CPU backend adds columns up many times slower than it multiplies matrices.
    ones = jnp.ones(gradient.shape[:3], gradient.dtype)
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    cells = (((0, 1, 2), (0, 1, 2)), ((), ()))
    total = lax.dot_general(ones, gradient, cells, preferred_element_type=wide)
    return gradient, total.astype(gradient.dtype)


_add_bias.defvjp(lambda x, bias: (x + bias, None), _bias_gradient)


class ParallelConv(nn.Module):
    """The sum of 3×3 convolutions at several rates, `c0`, `c1`, … in the parameters.

    It is the last layer of a network: each score sees near and far surroundings at
    once.

    Attributes:
        features: output maps.
        rates: dilation rates of the convolutions.
        padding: kind of padding; each convolution pads its maps by its rate.
        kernel_init: initializer of their kernels.
        dtype: of the computation; parameters are float32.

    Source: the head of Wang et al. (2018), public definition: rates 6, 12, 18, 24.
    """

    features: int
    rates: tuple[int, ...]
    padding: Literal["same", "reflect"] = "same"
    kernel_init: Callable = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        options = self.padding, self.kernel_init, self.dtype
        convs = [
            DilatedConv(self.features, 3, rate, *options, name=f"c{i}")
            for i, rate in enumerate(self.rates)
        ]
        return functools.reduce(operator.add, [conv(x) for conv in convs])


def score_layer(
    features: int,
    rates: tuple[int, ...],
    padding: Padding,
    dtype: DTypeLike,
    name: str,
    kernel: int = 1,
) -> nn.Module:
    """Return the last layer of a network: a `ParallelConv`, or, without rates, a 1×1.

    Both are initialized with N(0, 0.001²), as in the release.

    Args:
        features: output maps.
        rates: see `ParallelConv`.
        padding: of the layers before; if they do not pad, a `ParallelConv` pads zeros.
        dtype: of the computation.
        name: in the parameters.
        kernel: side of the kernel, if not 1; such a convolution pads zeros.
    """
    init = nn.initializers.normal(0.001)
    if not rates:
        return DilatedConv(features, kernel, 1, "same", init, dtype, name=name)
    border: Literal["same", "reflect"] = "reflect" if padding == "reflect" else "same"
    return ParallelConv(features, rates, border, init, dtype, name=name)


def score_rows(rates: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """(kernel, dilation, stride, padding) of a `score_layer`'s widest convolution."""
    return [(3, max(rates), 1, max(rates))] if rates else []


class MaxPool(nn.Module):
    """`max_pool` as a layer, without parameters.

    Attributes:
        size: of the window.
        stride: see `max_pool`.
        padding: see `max_pool`.
    """

    size: int
    stride: int | None = None
    padding: int = 0

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return max_pool(x, self.size, self.stride, self.padding)


class AveragePool(nn.Module):
    """`average_pool` as a layer, without parameters.

    Attributes:
        size: of the window.
    """

    size: int

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return average_pool(x, self.size)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe & Szegedy 2015) whose statistics are parameters.

    y = scale · (x − mean) / √(var + ε) + bias

    `mean` and `var` are stored beside `scale` and `bias`, so that all code that saves,
    loads, or applies parameters includes them; they have no gradients. When the batch's
    own statistics are used (`train`, `running`), the new running statistics, m·old +
    (1 − m)·batch, are written into the collection `"batch_stats"` if the caller made it
    mutable, and the training step copies them into the parameters. If a batch is
    divided over devices, its statistics are those of the whole batch.

    Attributes:
        running: in training, normalize by the batch's statistics; otherwise by the
            parameters, which then do not change (frozen).
        momentum: m.
        epsilon: ε.
        dtype: of the result; statistics are float32.

    Source: the paper's Algorithms 1 and 2; m and ε, and the unbiased variance in the
    running statistics, are as in PyTorch.
    """

    running: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h w c"]:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, x.shape[-1:]
        scale = self.param("scale", ones, shape, jnp.float32)
        bias = self.param("bias", zeros, shape, jnp.float32)
        mean = lax.stop_gradient(self.param("mean", zeros, shape, jnp.float32))
        var = lax.stop_gradient(self.param("var", ones, shape, jnp.float32))
        x = jnp.asarray(x, jnp.float32)
        if train and self.running:
            old, count = (mean, var), x.size // x.shape[-1]
            mean = jnp.mean(x, (0, 1, 2))
            var = jnp.mean(jnp.square(x - mean), (0, 1, 2))
            self._keep(old, (mean, var * (count / max(1, count - 1))))
        factor = scale * lax.rsqrt(var + self.epsilon)
        return jnp.asarray((x - mean) * factor + bias, self.dtype)

    def _keep(self, old: tuple, batch: tuple) -> None:
        if not self.is_mutable_collection("batch_stats"):
            return
        for name, before, now in zip(("mean", "var"), old, batch, strict=True):
            after = self.momentum * before + (1 - self.momentum) * now
            self.put_variable("batch_stats", name, after)


def conv_norm(
    x: Float[Array, "b h w c"],
    name: str,
    features: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    padding: Literal["same", "reflect"],
    running: bool,
    train: bool,
    dtype: DTypeLike,
) -> Float[Array, "b h2 w2 d"]:
    """Apply a convolution without bias and its normalization, such as conv1 and bn1.

    Args:
        x: maps, NHWC.
        name: of the convolution; `norm_name` gives that of the normalization.
        features: as in `DilatedConv`.
        kernel: side of the kernel.
        stride: as in `DilatedConv`.
        dilation: as in `DilatedConv`.
        padding: as in `DilatedConv`.
        running: as in `BatchNorm`.
        train: whether the network trains.
        dtype: of the computation.
    """
    conv = DilatedConv(
        features,
        kernel,
        dilation,
        padding,
        dtype=dtype,
        stride=stride,
        use_bias=False,
        name=name,
    )
    norm = BatchNorm(running, dtype=dtype, name=norm_name(name))
    return norm(conv(x), train)


def norm_name(conv: str) -> str:
    """Return the name of the normalization after a convolution.

    Example:
        >>> norm_name("conv2"), norm_name("downsample")
        ('bn2', 'downsample_bn')
    """
    return conv.replace("conv", "bn") if "conv" in conv else f"{conv}_bn"


class Dropout(nn.Module):
    """Zero cells with probability `rate`, and scale the others up to compensate.

    Every example draws from its own key, in the order of its cells. Padding rows at the
    end of a map (`dilax.runtime.row_shards`) therefore do not change the rows before
    them. With `nn.Dropout`, which draws for the whole batch at once, they would.

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
        *sides, channels = x.shape[1:]
        limit = round(keep * 2**16)

        def kept(index):
            # The halves of a word of random bits serve a cell of the first half of the
            # channels and one of the second; a TPU would copy neighbours several times.
            words = (*sides, -(-channels // 2))
            bits = jax.random.bits(jax.random.fold_in(key, index), words)
            halves = [(bits & 0xFFFF) < limit, (bits >> 16) < limit]
            return jnp.concatenate(halves, -1)[..., :channels]

        mask = jax.vmap(kept)(jnp.arange(len(x)))
        return jnp.where(mask, x / jnp.asarray(keep, x.dtype), 0)
