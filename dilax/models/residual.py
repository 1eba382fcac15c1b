"""Dilated residual networks (Yu, Koltun & Funkhouser 2017), C and D, at stride 8.

Residual networks whose last two levels are dilated instead of strided, with a first
level without max pooling, and last ones that take the dilation back without residuals,
which removes the grid that dilation leaves (§5). The levels are tables.

ResNets with dilation in place of the last two strides, and HDC's rates for it.

He et al. (2016) with the stem, the output stride of 8 and the rates of Wang et al.
(2018), "Understanding Convolution for Semantic Segmentation", §3.2. Layers are named
as torchvision names them.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.models.context import ContextLayer
from dilax.models.front_end import Layer
from dilax.models.layers import MaxPool, conv_norm, score_layer, score_rows
from dilax.ops import ReceptiveField, receptive_field

_EXPANSION = 4  # a block's output channels over those of its 3×3 convolution

Stem = tuple[tuple[int, int, int], ...]  # (kernel, channels, stride)
DEEP_STEM: Stem = ((3, 64, 2), (3, 64, 1), (3, 128, 1))
PLAIN_STEM: Stem = ((7, 64, 2),)


class Block(NamedTuple):
    """One bottleneck block of a ResNet's table: 1×1, 3×3 and 1×1 convolutions.

    Attributes:
        name: in the parameters, such as `layer3_0`.
        channels: of the 3×3 convolution; the block gives four times as many.
        stride: of the 3×3 convolution.
        dilation: of the 3×3 convolution.

    Example:
        >>> RESNET101[0]
        3
    """

    name: str
    channels: int
    stride: int = 1
    dilation: int = 1


def resnet_blocks(
    counts: tuple[int, int, int, int],
    res4: Sequence[int] = (2,),
    res5: Sequence[int] = (4,),
) -> tuple[Block, ...]:
    """The table of a ResNet with output stride 8.

    Args:
        counts: blocks of the four groups, (3, 4, 23, 3) for ResNet-101.
        res4: rates of the third group's blocks, repeated until there are enough.
        res5: rates of the last group's, likewise.

    Example:
        >>> [row.dilation for row in resnet_blocks((3, 4, 6, 3), (1, 2), (4,))[7:]]
        [1, 2, 1, 2, 1, 2, 4, 4, 4]
    """
    rates: tuple[Sequence[int], ...] = ((1,), (1,), res4, res5)
    return tuple(
        Block(
            f"layer{group + 1}_{i}",
            64 * 2**group,
            2 if group == 1 and i == 0 else 1,
            rates[group][i % len(rates[group])],
        )
        for group, count in enumerate(counts)
        for i in range(count)
    )


RESNET50, RESNET101 = (3, 4, 6, 3), (3, 4, 23, 3)
# HDC's rates. Those of ResNet-101 are published; for the six blocks of ResNet-50's
# third group we take the same sawtooth as far as it goes.
HDC101 = resnet_blocks(
    RESNET101, (2, 2, 5, 9, *(1, 2, 5, 9) * 4, *(1, 2, 5)), (5, 9, 17)
)
HDC50 = resnet_blocks(RESNET50, (2, 2, 5, 9, 1, 2), (5, 9, 17))

Row = TypeVar("Row", Block, ContextLayer, Layer)


def with_rates(layers: tuple[Row, ...], rates: Sequence[int]) -> tuple[Row, ...]:
    """Any table's dilated layers with other rates, such as HDC's (1, 2, 5).

    Args:
        layers: rows that have a `dilation`: of a ResNet, a front end, a context module.
        rates: for the rows whose dilation is not 1, in order, repeated until there are
            enough.

    Raises:
        ValueError: if there are no rates, or one is not positive.

    Example:
        >>> from dilax.models import VGG16
        >>> [row.dilation for row in with_rates(VGG16, (1, 2, 5, 4))[13:17]]
        [1, 2, 5, 4]
    """
    if not rates or min(rates) < 1:
        raise ValueError(f"rates={tuple(rates)}: must be positive, one at least")
    left = itertools.cycle(rates)
    return tuple(
        row._replace(dilation=next(left)) if row.dilation > 1 else row for row in layers
    )


class ResNet(nn.Module):
    """Image → score maps at an eighth of the image's resolution.

    Takes the place of a `FrontEnd`. Args of `__call__`: x (b, h, w, 3), mean-subtracted
    BGR on the 0..255 scale; train makes batches' statistics count. Returns logits
    (b, ⌈h / 8⌉, ⌈w / 8⌉, num_classes · duc²), float32; cell i is centred on pixel 8i.

    Attributes:
        num_classes: C, the number of classes.
        blocks: the table of the blocks.
        stem: (kernel, channels, stride) of the convolutions before the pool; the first
            of `DEEP_STEM` in place of the 7×7 one of `PLAIN_STEM`.
        width_multiplier: scales all channels.
        final_name: name of the closing layer.
        final_rates: of a `ParallelConv`; none is a 1×1 convolution.
        duc: r: the closing layer gives r² maps a class (see `DilatedNet`).
        padding: every layer pads its maps, by zeros or by reflection.
        batch_norm: `"running"` trains with the batches' statistics and keeps running
            ones for prediction; `"frozen"` trains with those that were loaded.
        remat: rematerialisation: gradients compute a block's maps again.
        dtype: of the computation; parameters are float32.

    Example:
        >>> field = ResNet(19).receptive_field
        >>> field.stride, field.centre
        (8, 0.0)

    Source: Wang et al. (2018) and their public definition; torchvision's layer names.
    """

    num_classes: int
    blocks: tuple[Block, ...] = HDC101
    stem: Stem = DEEP_STEM
    width_multiplier: float = 1.0
    final_name: str = "final"
    final_rates: tuple[int, ...] = (6, 12, 18, 24)
    duc: int = 1
    padding: Literal["same", "reflect"] = "same"
    batch_norm: Literal["running", "frozen"] = "running"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        stem = [(k, 1, stride, k // 2) for k, _, stride in self.stem]
        blocks = [(3, row.dilation, row.stride, row.dilation) for row in self.blocks]
        return [*stem, (3, 1, 2, 1), *blocks, *score_rows(self.final_rates)]

    @property
    def receptive_field(self) -> ReceptiveField:
        """What one output cell sees of the image, in pixels."""
        return receptive_field(self.rows)

    @property
    def output_stride(self) -> int:
        """Image pixels from one cell to the next: 8."""
        return self.receptive_field.stride

    @property
    def margin(self) -> int:
        """Pixels of surroundings that an image needs: none, as the layers pad."""
        return 0

    @property
    def spreads_rows(self) -> bool:
        """Whether rows of its maps may lie on several devices (`row_shards`)."""
        return False

    @property
    def first_layer(self) -> str:
        """Name of the layer that takes the image."""
        return "conv1"

    @property
    def own_layers(self) -> tuple[str, ...]:
        """Beginnings of the names of layers that no weights of ImageNet have."""
        return (f"{self.final_name}/",)

    def _channels(self, channels: int) -> int:
        return max(1, round(channels * self.width_multiplier))

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        norm = functools.partial(
            conv_norm,
            padding=self.padding,
            running=self.batch_norm == "running",
            train=train,
            dtype=self.dtype,
        )
        for i, (kernel, channels, stride) in enumerate(self.stem, 1):
            x = nn.relu(norm(x, f"conv{i}", self._channels(channels), kernel, stride))
        x = MaxPool(3, 2, 1, name="maxpool")(x)
        kind = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        for row in self.blocks:
            block = kind(
                self._channels(row.channels),
                row.stride,
                row.dilation,
                self.padding,
                self.batch_norm == "running",
                self.dtype,
                name=row.name,
            )
            x = block(x, train)
        features = self.num_classes * self.duc**2
        rates, name = self.final_rates, self.final_name
        final = score_layer(features, rates, self.padding, self.dtype, name)
        return jnp.asarray(final(x), jnp.float32)


class Bottleneck(nn.Module):
    """A block: 1×1, 3×3 and 1×1 convolutions beside what they are added to.

    Args of `__call__`: x (b, h, w, c); train. Returns (b, h', w', 4·channels).

    Attributes:
        channels: see `Block`.
        stride: likewise.
        dilation: likewise.
        padding: see `ResNet`.
        running: see `BatchNorm`.
        dtype: of the computation.
    """

    channels: int
    stride: int = 1
    dilation: int = 1
    padding: Literal["same", "reflect"] = "same"
    running: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        norm = functools.partial(
            conv_norm,
            padding=self.padding,
            running=self.running,
            train=train,
            dtype=self.dtype,
        )
        out = _EXPANSION * self.channels
        y = nn.relu(norm(x, "conv1", self.channels, 1))
        y = nn.relu(norm(y, "conv2", self.channels, 3, self.stride, self.dilation))
        y = norm(y, "conv3", out, 1)
        if self.stride > 1 or x.shape[-1] != out:
            x = norm(x, "downsample", out, 1, self.stride)
        return nn.relu(x + y)


class Level(NamedTuple):
    """A level: a run of equal blocks.

    Attributes:
        kind: `"conv"` is a 3×3 convolution; `"basic"` two of them, and
            `"bottleneck"` 1×1, 3×3 and 1×1 to four times the channels, around which the
            input is added.
        channels: of the 3×3 convolutions.
        blocks: how many.
        stride: of the first block.
        dilation: of the 3×3 convolutions.
        residual: whether inputs are added.

    Example:
        >>> DRN_D_22[0].channels, Level("bottleneck", 64, 3).outputs
        (16, 256)
    """

    kind: Literal["conv", "basic", "bottleneck"]
    channels: int
    blocks: int
    stride: int = 1
    dilation: int = 1
    residual: bool = True

    @property
    def outputs(self) -> int:
        """Maps that come out."""
        return self.channels * (4 if self.kind == "bottleneck" else 1)


def _levels(
    kind: Literal["basic", "bottleneck"],
    blocks: tuple[int, int, int, int],
    ends: Literal["conv", "basic"],
) -> tuple[Level, ...]:
    """The eight levels: `blocks` of levels 3 to 6, `ends` of the others."""
    three, four, five, six = blocks
    return (
        Level(ends, 16, 1),
        Level(ends, 32, 1, stride=2),
        Level(kind, 64, three, stride=2),
        Level(kind, 128, four, stride=2),
        Level(kind, 256, five, dilation=2),
        Level(kind, 512, six, dilation=4),
        Level(ends, 512, 1, dilation=2, residual=False),
        Level(ends, 512, 1, residual=False),
    )


DRN_C_26 = _levels("basic", (2, 2, 2, 2), "basic")
DRN_D_22 = _levels("basic", (2, 2, 2, 2), "conv")
DRN_D_38 = _levels("basic", (3, 4, 6, 3), "conv")
DRN_D_54 = _levels("bottleneck", (3, 4, 6, 3), "conv")


class DRN(nn.Module):
    """Image → one score map a class, at an eighth of the image's resolution.

    Args of `__call__`: x (b, h, w, c), as for `FrontEnd`; train lets batch
    normalisation take the batch's own statistics. Returns logits (b, ⌈h / 8⌉, ⌈w / 8⌉,
    num_classes), float32; cell i stands on image pixel 8i.

    Attributes:
        num_classes: C, the number of classes.
        levels: the table.
        width_multiplier: scales every level's channels.
        final_name: name of the closing 1×1 layer.
        duc: r: the closing layer gives r² maps a class (see `DilatedNet`).
        padding: every layer pads its maps, by zeros or by reflection.
        batch_norm: as of a `ResNet`: `"running"` or `"frozen"`.
        remat: rematerialisation: gradients compute each block's maps again.
        dtype: of the computation; parameters are float32.

    Example:
        >>> DRN(21).output_stride, DRN(21).receptive_field.stride
        (8, 8)

    Source: §2 to §5 of the paper; the authors' `drn` in PyTorch.
    """

    num_classes: int
    levels: tuple[Level, ...] = DRN_D_22
    width_multiplier: float = 1.0
    final_name: str = "final"
    duc: int = 1
    padding: Literal["same", "reflect"] = "same"
    batch_norm: Literal["running", "frozen"] = "running"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        found = [(7, 1, 1, 3)]
        for level in self.levels:
            for stride in (level.stride, *[1] * (level.blocks - 1)):
                wide = (3, level.dilation, stride, level.dilation)
                again = (3, level.dilation, 1, level.dilation)
                found += [wide, again] if level.kind == "basic" else [wide]
        return found

    @property
    def receptive_field(self) -> ReceptiveField:
        """What one output cell sees of the image, in pixels."""
        return receptive_field(self.rows)

    @property
    def output_stride(self) -> int:
        """Image pixels from one cell to the next: 8."""
        return self.receptive_field.stride

    @property
    def margin(self) -> int:
        """Pixels of surroundings that an image needs: none, as the layers pad."""
        return 0

    @property
    def spreads_rows(self) -> bool:
        """Whether rows of its maps may lie on several devices (`row_shards`)."""
        return False

    @property
    def first_layer(self) -> str:
        """Name of the layer that takes the image."""
        return "stem"

    @property
    def own_layers(self) -> tuple[str, ...]:
        """Beginnings of the names of layers that no weights of ImageNet have."""
        return (f"{self.final_name}/",)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        running = self.batch_norm == "running"
        stem = functools.partial(
            conv_norm,
            padding=self.padding,
            running=running,
            train=train,
            dtype=self.dtype,
        )
        levels = [self._slim(level) for level in self.levels]
        x = nn.relu(stem(x, self.first_layer, levels[0].channels, 7))
        kind = nn.remat(LevelBlock, static_argnums=(2,)) if self.remat else LevelBlock
        for number, level in enumerate(levels, 1):
            for index in range(level.blocks):
                row = level if index == 0 else level._replace(stride=1)
                name = f"level{number}_{index}"
                block = kind(row, self.padding, running, self.dtype, name=name)
                x = block(x, train)
        features = self.num_classes * self.duc**2
        final = score_layer(features, (), self.padding, self.dtype, self.final_name)
        return jnp.asarray(final(x), jnp.float32)

    def _slim(self, level: Level) -> Level:
        return level._replace(
            channels=max(1, round(level.channels * self.width_multiplier))
        )


class LevelBlock(nn.Module):
    """One block of a level; batch normalisation follows each convolution.

    Where shapes differ, a 1×1 convolution brings the input to that of the output.

    Attributes:
        level: its row of the table.
        padding: see `DRN`.
        running: see `BatchNorm`.
        dtype: of the computation.
    """

    level: Level
    padding: Literal["same", "reflect"] = "same"
    running: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        norm = functools.partial(
            conv_norm,
            padding=self.padding,
            running=self.running,
            train=train,
            dtype=self.dtype,
        )
        level, y = self.level, x
        wide = level.channels, 3, level.stride, level.dilation
        if level.kind == "bottleneck":
            y = nn.relu(norm(y, "conv1", level.channels, 1))
            y = norm(nn.relu(norm(y, "conv2", *wide)), "conv3", level.outputs, 1)
        else:
            y = norm(y, "conv1", *wide)
        if level.kind == "basic":
            y = norm(nn.relu(y), "conv2", level.channels, 3, 1, level.dilation)
        if level.kind != "conv" and level.residual:
            if level.stride > 1 or x.shape[-1] != level.outputs:
                x = norm(x, "shortcut", level.outputs, 1, level.stride)
            y += x
        return nn.relu(y)
