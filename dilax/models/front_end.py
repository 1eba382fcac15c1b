"""The front end (Yu & Koltun 2016, §4): VGG-16 turned into a dense predictor.

The last two pools are removed, the convolutions after them are dilated instead, and no
layer pads. The architecture is a table, so smaller networks can be built as well.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.models.blocks import Block, way_to_run
from dilax.models.dilated_net import Backbone
from dilax.models.layers import (
    AveragePool,
    DilatedConv,
    Dropout,
    MaxPool,
    score_layer,
    score_rows,
)
from dilax.ops import receptive_field
from dilax.ops.dilated_conv import Padding
from dilax.runtime.row_shards import current_shards


class Layer(NamedTuple):
    """One row of a front end's table.

    Attributes:
        name: the layer's name in the parameters.
        kernel: side of the kernel or of the pooling window.
        channels: output maps; 0 marks a max pool, whose stride is its kernel.
        dilation: distance between taps in cells.
        dropout: rate of the dropout that follows; it marks the head (fc6, fc7).

    Example:
        >>> Layer("fc6", 7, 4096, dilation=4, dropout=0.5).dilation
        4
    """

    name: str
    kernel: int
    channels: int = 0
    dilation: int = 1
    dropout: float = 0.0

    @property
    def stride(self) -> int:
        """Cells from one output cell to the next."""
        return self.kernel if self.channels == 0 else 1

    def pool(self) -> nn.Module:
        """Return the row as a layer, if it is a pool."""
        return MaxPool(self.kernel, name=self.name)


@dataclasses.dataclass(frozen=True)
class Pool:
    """A row whose windows overlap (DeepLab): n cells become ⌈n / stride⌉.

    Attributes:
        name: the layer's name.
        kernel: side of the window, an odd number.
        stride: distance between windows in cells.
        average: take the average of each window, at stride 1, instead of its maximum.

    Example:
        >>> Pool("pool4", 3).stride
        1
    """

    name: str
    kernel: int
    stride: int = 1
    average: bool = False
    channels: ClassVar[int] = 0
    dilation: ClassVar[int] = 1
    dropout: ClassVar[float] = 0.0

    def pool(self) -> nn.Module:
        """Return the pool as a layer."""
        if self.average:
            return AveragePool(self.kernel, name=self.name)
        return MaxPool(self.kernel, self.stride, self.kernel // 2, name=self.name)


class Branch(NamedTuple):
    """Scores from an early layer, added to those of the whole stack (DeepLab-MSc).

    A 3×3 convolution with a stride and a 1×1, each with ReLU and dropout, then scores.

    Attributes:
        after: name of the pool whose output it takes; `""` is the image.
        stride: cells from one of its scores to the next.
        channels: number of channels of both layers.
        dropout: rate of the dropout after each of them.

    Example:
        >>> Branch("pool1", 4).channels
        128
    """

    after: str
    stride: int
    channels: int = 128
    dropout: float = 0.5

    @property
    def name(self) -> str:
        """The prefix of its layers' names."""
        return self.after or "image"


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

# For slim networks: fc6 with 3×3 taps instead of 7×7, dilated to cover about the same
# area (receptive field 316 instead of 380 px), with a fifth of the arithmetic.
VGG16_SLIM_HEAD = tuple(
    row._replace(kernel=3, dilation=8) if row.name == "fc6" else row for row in VGG16
)


class VGG(Backbone):
    """A network that is a table of convolutions and pools: VGG-16 and its relatives.

    `FrontEnd`, `FCN8s`, and `SegNet` define what follows the table.

    Attributes:
        num_classes: C, the number of classes.
        layers: the table of all layers but the last.
        width_multiplier: scales every layer's channels.
        head_channels: channels of the layers with dropout (fc6, fc7), if
            `width_multiplier` should not set them.
        final_name: name of the last layer.
        padding: of the convolutions: `"valid"`, `"same"` or `"reflect"`.
        remat: rematerialization: gradients recompute the maps between two pools from
            the first pool's output, so that only one such block is in memory.
        dtype: of the computation; parameters are float32.
    """

    num_classes: int
    layers: tuple[Layer | Pool, ...] = VGG16
    width_multiplier: float = 1.0
    head_channels: int | None = None
    final_name: str = "final"
    padding: Literal["valid", "same", "reflect"] = "valid"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        rows = []
        for row in self.layers:
            pads = self.padding != "valid" and row.channels > 0
            pad = row.dilation * (row.kernel - 1) // 2 if pads else 0
            if isinstance(row, Pool):
                pad = row.kernel // 2
            rows.append((row.kernel, row.dilation, row.stride, pad))
        return rows

    @property
    def first_layer(self) -> str:
        """Name of the layer that takes the image."""
        return next(row.name for row in self.layers if row.channels)

    def channels(self, row: Layer | Pool) -> int:
        """Return the number of output maps of a row of the table."""
        if row.dropout and self.head_channels is not None:
            return self.head_channels
        return self._width(row.channels)

    def _padding(self, row: Layer | Pool) -> Padding:
        return self.padding

    def _scores(
        self, name: str, x, rates: tuple[int, ...] = (), kernel: int = 1
    ) -> jax.Array:
        """Compute the scores of the classes, float32; initially they are near zero."""
        features = self.num_classes * self.duc**2
        layer = score_layer(features, rates, self.padding, self.dtype, name, kernel)
        return jnp.asarray(layer(x), jnp.float32)

    def _stack(self, x, train: bool, wanted: Collection[str]) -> dict[str, jax.Array]:
        """Return the outputs of the wanted rows, the image (`""`), and the `"end"`."""
        maps = {"": x}
        for rows in _blocks(self.layers, wanted):
            run = functools.partial(VGG._run, rows=rows, train=train)
            x = nn.remat(run)(self, x) if self.remat else run(self, x)
            maps[rows[-1].name] = x
        return {**{name: maps[name] for name in wanted}, "end": x}

    def _run(self, x, rows: tuple[Layer | Pool, ...], train: bool):
        if (block := self._block(rows)) and (way := way_to_run(x, block)):
            names = [row.name for row in rows if row.channels]
            params = [self.variables["params"][name] for name in names]
            return way(params, x)
        for row in rows:
            if row.channels == 0:
                x = row.pool()(x)
                continue
            x = nn.relu(self._conv(row)(x))
            if row.dropout:
                x = Dropout(row.dropout)(x, train=train)
        return x

    def _block(self, rows: tuple[Layer | Pool, ...]) -> Block | None:
        """Return these rows as a block, if they are convolutions, with or without pool.

        None too where layers must run one by one: as long as there are no parameters,
        with dropout or padding, and with rows on several devices.
        """
        last = rows[-1]
        pool = last.kernel if isinstance(last, Layer) and not last.channels else 1
        convs = rows[:-1] if pool > 1 else rows
        if (
            self.is_initializing()
            or current_shards()
            or not convs
            or any(
                not row.channels or row.dropout or self._padding(row) != "valid"
                for row in convs
            )
        ):
            return None
        return Block([self._conv(row, parent=None) for row in convs], pool)

    def _conv(self, row: Layer | Pool, **options) -> DilatedConv:
        return DilatedConv(
            self.channels(row),
            row.kernel,
            row.dilation,
            self._padding(row),
            dtype=self.dtype,
            name=row.name,
            **options,
        )


class FrontEnd(VGG):
    """Image → one score map per class, at an eighth of the image's resolution.

    Args of `__call__`: x (b, h, w, 3), mean-subtracted BGR on the 0..255 scale, padded
    by `margin` if the output should cover the image; `train` turns dropout on (rng
    `"dropout"`). Returns logits (b, h', w', num_classes · duc²), float32; for
    VGG-16 h' = (h − 372) / 8.

    Without ImageNet weights, the convolutions have the normal initialization of He et
    al. (2015); `final` is initialized with N(0, 0.001²), as in the release.

    Attributes:
        padding: see `VGG`. `"valid"` (the paper) pads the image instead. Padding in
            every layer is five times cheaper on small crops, but scores then depend on
            where a crop or tile ends.
        final_rates: rates of a `ParallelConv` as the last layer, instead of the paper's
            1×1 convolution; it pads its maps.
        duc: r: the last layer returns r² maps per class (see `DilatedNet`).
        branches: scores from early layers, which are added to those of the last layer.

    Example:
        >>> front_end = FrontEnd(21)
        >>> front_end.receptive_field, front_end.margin
        (ReceptiveField(size=380, stride=8, padding=0), 186)
        >>> slim = FrontEnd(21, VGG16, width_multiplier=0.125)
        >>> slim.receptive_field == front_end.receptive_field
        True

    Source: paper §4; the released network definition.
    """

    final_rates: tuple[int, ...] = ()
    duc: int = 1
    branches: tuple[Branch, ...] = ()

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        return [*super().rows, *score_rows(self.final_rates)]

    @property
    def shards_rows(self) -> bool:
        """Whether the rows of maps may be divided over devices (`row_shards`)."""
        overlap = any(isinstance(row, Pool) for row in self.layers)
        return not overlap and not self.branches and self.duc == 1

    @property
    def own_layers(self) -> tuple[str, ...]:
        """Prefixes of the names of layers that no weights of VGG-16 contain."""
        return (f"{self.final_name}/", *(f"{b.name}_" for b in self.branches))

    @property
    def margin(self) -> int:
        """Pixels around the image that the network needs on every side; VGG-16: 186."""
        return 0 if self.padding != "valid" else receptive_field(super().rows).margin

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        maps = self._stack(x, train, [branch.after for branch in self.branches])
        scores = [self._scores(self.final_name, maps["end"], self.final_rates)]
        for branch in self.branches:
            scores.append(self._branch(branch, maps[branch.after], train))
        return functools.reduce(jnp.add, scores)

    def _branch(self, branch: Branch, x, train: bool) -> jax.Array:
        for part, kernel, stride in (("conv", 3, branch.stride), ("fc", 1, 1)):
            x = DilatedConv(
                self._width(branch.channels),
                kernel,
                padding="same",
                dtype=self.dtype,
                stride=stride,
                name=f"{branch.name}_{part}",
            )(x)
            x = Dropout(branch.dropout)(nn.relu(x), train=train)
        return self._scores(f"{branch.name}_scores", x)


def _blocks(
    layers: tuple[Layer | Pool, ...], ends: Collection[str] = ()
) -> list[tuple[Layer | Pool, ...]]:
    """Cut the layers after each pool and each end, and before each head layer."""
    cuts = [i for i, row in enumerate(layers) if row.dropout]
    cuts += [
        i + 1 for i, row in enumerate(layers) if not row.channels or row.name in ends
    ]
    starts = [0, *sorted({i for i in cuts if 0 < i < len(layers)})]
    found = [layers[i:j] for i, j in zip(starts, [*starts[1:], None], strict=True)]
    return [rows for rows in found if rows]  # a table may have none
