"""The systems that the paper compares with (Tables 2, 4, 5, and 6).

DeepLab (Chen et al. 2015): VGG-16 at stride 8, as tables for `FrontEnd`. Pools are 3×3
and stay centred on pixels 0, 8, 16, …; the last two have stride 1, and conv5 is dilated
by 2 instead. All layers pad. Scores are centred on image pixels 8i, where labels are
sampled; upsampling is top-left aligned. Sources: §3.1, §4.1, and Table 1; the released
network definitions. In that of LargeFOV, an average pool follows the last pool.

FCN-8s (Long et al. 2015): VGG-16 at stride 32, plus scores of finer layers.

SegNet (Badrinarayanan et al. 2015): an encoder, and a decoder that mirrors it.
"""

import functools
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dilax.models.front_end import VGG, VGG16, Branch, Layer, Pool
from dilax.models.layers import BatchNorm, DilatedConv
from dilax.ops import max_pool_with_places, unpool, upsample_bilinear
from dilax.ops.dilated_conv import Padding
from dilax.runtime.row_shards import refuse_shards

_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5")


def _table(*head: Layer | Pool) -> tuple[Layer | Pool, ...]:
    """Return the front end's convolutions with other pools and another head."""
    rows: list[Layer | Pool] = []
    for number, name in enumerate(_NAMES, 1):
        rows += [row for row in VGG16 if row.name.startswith(name)]
        rows.append(Pool(f"pool{number}", 3, 2 if number <= 3 else 1))
    return (*rows, *head)


DEEPLAB = _table(
    Layer("fc6", 4, 4096, dilation=4, dropout=0.5), Layer("fc7", 1, 4096, dropout=0.5)
)
DEEPLAB_7X7 = tuple(
    row._replace(kernel=7) if isinstance(row, Layer) and row.name == "fc6" else row
    for row in DEEPLAB
)
DEEPLAB_LARGE_FOV = _table(
    Pool("pool5a", 3, average=True),
    Layer("fc6", 3, 1024, dilation=12, dropout=0.5),
    Layer("fc7", 1, 1024, dropout=0.5),
)
# DeepLab-MSc's scores from the image and from the first four pools.
MULTI_SCALE = (
    Branch("", 8),
    Branch("pool1", 4),
    Branch("pool2", 2),
    Branch("pool3", 1),
    Branch("pool4", 1),
)


def _with_all_pools() -> tuple[Layer, ...]:
    """Return VGG-16 undilated, with the two pools that the front end removes."""
    rows = []
    for row in VGG16:
        rows.append(row._replace(dilation=1))
        if row.name in ("conv4_3", "conv5_3"):
            rows.append(Layer(f"pool{row.name[4]}", 2))
    return tuple(rows)


FCN_VGG16 = _with_all_pools()
_ENTRY = 100  # cells of zeros around the image, so that fc6 has at least 7×7 cells


class FCN8s(VGG):
    """Image → one score map per class, at the image's own resolution.

    Args of `__call__`: as `FrontEnd`, images of any size. Returns (b, h, w,
    num_classes) float32.

    Scores at stride 32 are upsampled and added to those of pool4; the sum is upsampled
    and added to those of pool3, and the result is upsampled to the image's size.
    Upsampling is bilinear and fixed. The first convolution is padded by 100, fc6 is not
    padded, and the maps are cropped to match.

    Example:
        >>> FCN8s(21).output_stride
        1

    Source: §4 of the paper; the released `voc-fcn8s`.
    """

    layers: tuple[Layer | Pool, ...] = FCN_VGG16
    final_name: str = "score_fr"
    padding: Literal["valid", "same", "reflect"] = "same"
    output_stride = 1

    @property
    def own_layers(self) -> tuple[str, ...]:
        """The three layers of scores."""
        return ("score_",)

    def _padding(self, row: Layer | Pool) -> Padding:
        if row.name == self.first_layer:
            return _ENTRY
        return "valid" if row.dropout else self.padding

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h w k"]:
        maps = self._stack(x, train, ("pool3", "pool4"))
        scores = self._scores(self.final_name, maps["end"])
        for name, offset in (("pool4", 5), ("pool3", 9)):
            scores = _enlarged(scores, 2)
            finer = self._scores(f"score_{name}", maps[name])
            scores += _cut(finer, offset, scores.shape[1:3])
        return _cut(_enlarged(scores, 8), 31, x.shape[1:3])


def _enlarged(x, factor: int):
    """Upsample n cells to (n + 1)·factor: a transposed convolution with full border."""
    refuse_shards("FCN-8s")
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    half = factor // 2
    return upsample_bilinear(padded, factor, "centred")[:, half:-half, half:-half]


def _cut(x, offset: int, size: tuple):
    h, w = size
    return x[:, offset : offset + h, offset : offset + w]


SEGNET = tuple(row for row in FCN_VGG16 if not row.dropout)


class SegNet(VGG):
    """Image → one score map per class, at the image's own resolution.

    Args of `__call__`: as `FrontEnd`, images of any size. Returns (b, h, w,
    num_classes) float32. Batch normalization follows each convolution but the last.

    The decoder has the encoder's convolutions in reverse order, `conv5_3_D` to
    `conv1_1_D`. Each returns as many maps as its counterpart takes; the last one
    returns the scores. Where the encoder pools, the decoder puts values back to where
    the maxima were.

    Attributes:
        batch_norm: `"running"` or `"frozen"`, as in a `ResNet`.

    Example:
        >>> SegNet(11).output_stride
        1

    Source: §3 of the paper; the released `segnet_train`.
    """

    layers: tuple[Layer | Pool, ...] = SEGNET
    final_name: str = "conv1_1_D"
    padding: Literal["valid", "same", "reflect"] = "same"
    batch_norm: Literal["running", "frozen"] = "running"
    output_stride = 1

    @property
    def own_layers(self) -> tuple[str, ...]:
        """The decoder, and batch normalization."""
        return ("*_D/", "*_bn/")

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
            x = self._normal(x, row.name, self._width(row.channels), train)
        for row in reversed(self.layers[1:]):
            if row.channels == 0:
                x = unpool(x, *pooled.pop())
            else:
                x = self._normal(x, f"{row.name}_D", took[row.name], train)
        return self._scores(self.final_name, x, kernel=3)

    def _normal(self, x, name: str, channels: int, train: bool):
        """Apply convolution, batch normalization and ReLU; gradients recompute them."""
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
