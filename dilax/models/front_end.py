"""The front end (Yu & Koltun 2016, §4): VGG-16 turned into a dense predictor.

The last two pools are gone, the convolutions after them are dilated instead, and
nothing is padded inside. The architecture is a table, so that small ones fit as well.
"""

import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.models.dropout import Dropout
from dilax.models.layers import DilatedConv, MaxPool, score_layer, score_rows
from dilax.ops import ReceptiveField, receptive_field


class Layer(NamedTuple):
    """One row of a front end's table.

    Attributes:
        name: the layer's name in the parameters.
        kernel: side of the kernel or of the pooling window.
        channels: output maps; 0 marks a max pool, whose stride is its kernel.
        dilation: distance between taps in cells.
        dropout: rate of the dropout that follows; it marks the head (fc6, fc7).
    """

    name: str
    kernel: int
    channels: int = 0
    dilation: int = 1
    dropout: float = 0.0


VGG16 = (
    Layer("conv1_1", 3, 64),
    Layer("conv1_2", 3, 64),
    Layer("pool1", 2),
    Layer("conv2_1", 3, 128),
    Layer("conv2_2", 3, 128),
    Layer("pool2", 2),
    Layer("conv3_1", 3, 256),
    Layer("conv3_2", 3, 256),
    Layer("conv3_3", 3, 256),
    Layer("pool3", 2),
    Layer("conv4_1", 3, 512),
    Layer("conv4_2", 3, 512),
    Layer("conv4_3", 3, 512),
    Layer("conv5_1", 3, 512, dilation=2),
    Layer("conv5_2", 3, 512, dilation=2),
    Layer("conv5_3", 3, 512, dilation=2),
    Layer("fc6", 7, 4096, dilation=4, dropout=0.5),
    Layer("fc7", 1, 4096, dropout=0.5),
)

# For slim networks: fc6 as a 3×3 kernel with the taps as far apart as fc6's outer ones
# nearly are (field 316 instead of 380 px), at a fifth of its arithmetic.
VGG16_SLIM_HEAD = tuple(
    row._replace(kernel=3, dilation=8) if row.name == "fc6" else row for row in VGG16
)


class FrontEnd(nn.Module):
    """Image → one score map a class, at an eighth of the image's resolution.

    Args of `__call__`: x (b, h, w, 3), mean-subtracted BGR on the 0..255 scale, padded
    by `margin` where the output shall cover the image; train turns dropout on (rng
    `"dropout"`). Returns logits (b, h', w', num_classes · duc²), float32; for
    VGG-16 h' = (h − 372) / 8.

    Without ImageNet weights the convolutions start with He et al.'s (2015) normal
    initialisation; `final` starts with N(0, 0.001²) as in the release.

    Attributes:
        num_classes: C, the number of classes.
        layers: the table of all layers but the last.
        width_multiplier: scales every layer's channels.
        head_channels: channels of the layers with dropout (fc6, fc7), where they shall
            not follow the width.
        final_name: name of the closing layer (`fc-final` in the VOC release).
        final_rates: of a `ParallelConv` that closes the network in place of the paper's
            1×1 convolution; it pads its maps.
        duc: r: the closing layer gives r² maps a class (see `DilatedNet`).
        padding: `"valid"` (the paper: pad the image instead), or `"same"` or
            `"reflect"` padding in every layer: five times cheaper on small crops, but
            scores then depend on where a crop or tile ends.
        norm: layer normalisation over the channels of each single pixel, for training
            from scratch. Nothing is pooled over space, so crops, tiles and whole
            images agree.
        remat: rematerialisation: gradients compute the maps between two pools again
            from what the first one gave, so that only one such block's are held.
        dtype: of the computation; parameters are float32.

    Source: paper §4; the released network definition.
    """

    num_classes: int
    layers: tuple[Layer, ...] = VGG16
    width_multiplier: float = 1.0
    head_channels: int | None = None
    final_name: str = "final"
    padding: Literal["valid", "same", "reflect"] = "valid"
    norm: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    final_rates: tuple[int, ...] = ()
    duc: int = 1

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        return [*self._table_rows(), *score_rows(self.final_rates)]

    def _table_rows(self) -> list[tuple[int, int, int, int]]:
        rows = []
        for r in self.layers:
            pool, pads = r.channels == 0, self.padding != "valid"
            pad = r.dilation * (r.kernel - 1) // 2 if pads and not pool else 0
            rows.append((r.kernel, r.dilation, r.kernel if pool else 1, pad))
        return rows

    @property
    def receptive_field(self) -> ReceptiveField:
        """What one output cell sees of the image, in pixels."""
        return receptive_field(self.rows)

    @property
    def margin(self) -> int:
        """Pixels of surroundings that an image needs on every side (VGG-16: 186)."""
        if self.padding != "valid":
            return 0
        return receptive_field(self._table_rows()).margin

    def _channels(self, row: Layer) -> int:
        if row.dropout and self.head_channels is not None:
            return self.head_channels
        return max(1, round(row.channels * self.width_multiplier))

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        for rows in _blocks(self.layers):
            run = functools.partial(FrontEnd._run, rows=rows, train=train)
            x = nn.remat(run)(self, x) if self.remat else run(self, x)
        features = self.num_classes * self.duc**2
        rates, name = self.final_rates, self.final_name
        final = score_layer(features, rates, self.padding, self.dtype, name)
        return jnp.asarray(final(x), jnp.float32)

    def _run(self, x, rows: tuple[Layer, ...], train: bool):
        for row in rows:
            if row.channels == 0:
                x = MaxPool(row.kernel, name=row.name)(x)
                continue
            x = DilatedConv(
                self._channels(row),
                row.kernel,
                row.dilation,
                self.padding,
                dtype=self.dtype,
                name=row.name,
            )(x)
            if self.norm:
                x = nn.LayerNorm(dtype=self.dtype, name=f"{row.name}_norm")(x)
            x = nn.relu(x)
            if row.dropout:
                x = Dropout(row.dropout)(x, train=train)
        return x


def _blocks(layers: tuple[Layer, ...]) -> list[tuple[Layer, ...]]:
    """The layers cut before each pool, and before each layer of the head."""
    cuts = [i for i, row in enumerate(layers) if not row.channels or row.dropout]
    starts = [0, *(i for i in cuts if i)]
    return [layers[i:j] for i, j in zip(starts, [*starts[1:], None], strict=True)]
