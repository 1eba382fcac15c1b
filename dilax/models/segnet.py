"""SegNet (Badrinarayanan et al. 2015): an encoder, and a decoder that is its mirror."""

import functools
from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from dilax.models.fcn import FCN_VGG16
from dilax.models.front_end import FrontEnd, Layer, Pool
from dilax.models.layers import BatchNorm, DilatedConv
from dilax.ops import max_pool_with_places, unpool

SEGNET = tuple(row for row in FCN_VGG16 if not row.dropout)


class SegNet(FrontEnd):
    """Image → one score map a class, at the image's own resolution.

    Args of `__call__`: as `FrontEnd`, images of any size. Returns (b, h, w,
    num_classes) float32. Each convolution but the last is normalised over the batch.

    The decoder has each of the encoder's convolutions in reverse, `conv5_3_D` to
    `conv1_1_D`, which give as many maps as those took; the last gives the scores. Where
    the encoder pools, the decoder sets maps where the maxima stood.

    Attributes:
        batch_norm: as of a `ResNet`: `"running"` or `"frozen"`.

    Example:
        >>> SegNet(11).output_stride
        1

    Source: §3 of the paper; the released `segnet_train`.
    """

    layers: tuple[Layer | Pool, ...] = SEGNET
    final_name: str = "conv1_1_D"
    padding: Literal["valid", "same", "reflect"] = "same"
    batch_norm: Literal["running", "frozen"] = "running"

    @property
    def own_layers(self) -> tuple[str, ...]:
        """The decoder, and normalisation."""
        return ("*_D/", "*_bn/")

    @property
    def output_stride(self) -> int:
        """1."""
        return 1

    @property
    def spreads_rows(self) -> bool:
        """False: maxima return to their places, and batches are normalised."""
        return False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h w k"]:
        pooled, took = [], {}
        for row in self.layers:
            if row.channels == 0:
                size = x.shape[1], x.shape[2]
                x, places = max_pool_with_places(x)
                pooled.append((places, size))
                continue
            took[row.name] = x.shape[-1]
            x = self._normal(x, row.name, self._slim(row.channels), train)
        for row in reversed(self.layers[1:]):
            if row.channels == 0:
                x = unpool(x, *pooled.pop())
            else:
                x = self._normal(x, f"{row.name}_D", took[row.name], train)
        return self._scores(self.final_name, x, kernel=3)

    def _normal(self, x, name: str, channels: int, train: bool):
        """Convolution, batch normalisation and ReLU; computed again for gradients."""
        run = functools.partial(
            SegNet._layer, name=name, channels=channels, train=train
        )
        return nn.remat(run)(self, x) if self.remat else run(self, x)

    def _layer(self, x, name: str, channels: int, train: bool):
        conv = DilatedConv(
            channels, 3, padding=self.padding, dtype=self.dtype, name=name
        )
        running = self.batch_norm == "running"
        norm = BatchNorm(running, dtype=self.dtype, name=f"{name}_bn")
        return nn.relu(norm(conv(x), train))
