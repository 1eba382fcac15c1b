"""Residual networks at output stride 8: ResNets with HDC's rates, and DRNs.

ResNet (He et al. 2016) with the stem, the dilation rates, and the last layers of Wang
et al. (2018), "Understanding Convolution for Semantic Segmentation", §3.2. Layers have
torchvision's names.

DRN-C and DRN-D (Yu, Koltun & Funkhouser 2017): the first level has no max pool, and the
last levels reduce the dilation again without residuals, which removes the grid that
dilation leaves (§5).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.models.context import ContextLayer
from dilax.models.dilated_net import Backbone
from dilax.models.front_end import Layer
from dilax.models.layers import MaxPool, conv_norm, score_layer, score_rows

Stem = tuple[tuple[int, int, int], ...]  # (kernel, channels, stride)
DEEP_STEM: Stem = ((3, 64, 2), (3, 64, 1), (3, 128, 1))
PLAIN_STEM: Stem = ((7, 64, 2),)


class Block(NamedTuple):
    """One bottleneck block in a ResNet's table: 1×1, 3×3 and 1×1 convolutions.

    Attributes:
        name: in the parameters, such as `layer3_0`.
        channels: of the 3×3 convolution; the block returns four times as many.
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
        res4: rates of the third group's blocks, repeated as needed.
        res5: rates of the last group's blocks, repeated as needed.

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
# HDC's rates. Those of ResNet-101 are published; the six blocks of ResNet-50's third
# group use the beginning of the same sawtooth.
HDC101 = resnet_blocks(
    RESNET101, (2, 2, 5, 9, *(1, 2, 5, 9) * 4, *(1, 2, 5)), (5, 9, 17)
)
HDC50 = resnet_blocks(RESNET50, (2, 2, 5, 9, 1, 2), (5, 9, 17))

Row = TypeVar("Row", Block, ContextLayer, Layer)


def with_rates(layers: tuple[Row, ...], rates: Sequence[int]) -> tuple[Row, ...]:
    """Return any table with other rates in its dilated layers, such as (1, 2, 5).

    Args:
        layers: rows that have a `dilation`: of a ResNet, a front end, a context module.
        rates: for the rows whose dilation is not 1, in order, repeated as needed.

    Raises:
        ValueError: if there are no rates, or one is not positive.

    Example:
        >>> from dilax.models import VGG16
        >>> [row.dilation for row in with_rates(VGG16, (1, 2, 5, 4))[13:17]]
        [1, 2, 5, 4]
    """
    if not rates or min(rates) < 1:
        raise ValueError(f"rates={tuple(rates)}: must be one or more positive numbers")
    left = itertools.cycle(rates)
    return tuple(
        row._replace(dilation=next(left)) if row.dilation > 1 else row for row in layers
    )


class Level(NamedTuple):
    """A level of a DRN: a run of equal blocks.

    Attributes:
        kind: `"conv"` is a 3×3 convolution. `"basic"` is two of them, and
            `"bottleneck"` is a 1×1, a 3×3, and a 1×1 to four times the channels; to the
            result of both, the input is added.
        channels: of the 3×3 convolutions.
        blocks: number of blocks.
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
        """Number of output maps."""
        return self.channels * (4 if self.kind == "bottleneck" else 1)


def _levels(
    kind: Literal["basic", "bottleneck"],
    blocks: tuple[int, int, int, int],
    ends: Literal["conv", "basic"],
) -> tuple[Level, ...]:
    """Return the eight levels: `blocks` in levels 3 to 6, `ends` in the others."""
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
# Ours, for CPUs. The stem already has stride 2: at full resolution, layers of few
# channels are slow, and take a third of a training step of DRN-D-22 at quarter width.
DRN_LIGHT = (
    Level("basic", 48, 1, stride=2),
    Level("basic", 96, 2, stride=2),
    Level("basic", 128, 2, dilation=2),
    Level("basic", 128, 2, dilation=4),
    Level("conv", 128, 1, dilation=2, residual=False),
    Level("conv", 128, 1, residual=False),
)
LIGHT_STEM = 5, 32, 2


class Residual(Backbone, kw_only=True):
    """The base class of ResNets and DRNs.

    Attributes:
        width_multiplier: scales all channels.
        final_name: name of the last layer.
        duc: r: the last layer returns r² maps per class (see `DilatedNet`).
        padding: of every layer, with zeros or by reflection.
        batch_norm: `"running"` trains with each batch's statistics and updates the
            running statistics for prediction; `"frozen"` uses the loaded statistics.
        remat: rematerialization: gradients recompute the maps of each block.
        dtype: of the computation; parameters are float32.
    """

    width_multiplier: float = 1.0
    final_name: str = "final"
    duc: int = 1
    padding: Literal["same", "reflect"] = "same"
    batch_norm: Literal["running", "frozen"] = "running"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def _norm(self, x, name: str, channels: int, train: bool, kernel: int, stride=1):
        """Apply convolution, batch normalization and ReLU."""
        options: Any = {"padding": self.padding, "dtype": self.dtype}
        running = self.batch_norm == "running"
        y = conv_norm(
            x, name, channels, kernel, stride, running=running, train=train, **options
        )
        return nn.relu(y)

    def _block(self, x, level: Level, name: str, train: bool, shortcut: str):
        kind = ResidualBlock
        if self.remat:
            kind = nn.remat(ResidualBlock, static_argnums=(2,))
        level = level._replace(channels=self._width(level.channels))
        running = self.batch_norm == "running"
        block = kind(level, self.padding, running, shortcut, self.dtype, name=name)
        return block(x, train)

    def _scores(self, x, num_classes: int, rates: tuple[int, ...] = ()):
        features = num_classes * self.duc**2
        final = score_layer(features, rates, self.padding, self.dtype, self.final_name)
        return jnp.asarray(final(x), jnp.float32)


class ResNet(Residual):
    """Image → score maps at an eighth of the image's resolution.

    Args of `__call__`: x (b, h, w, 3), mean-subtracted BGR on the 0..255 scale; train
    normalizes with the batch's statistics. Returns logits (b, ⌈h / 8⌉, ⌈w / 8⌉,
    num_classes · duc²), float32; cell i is centred on pixel 8i.

    Attributes:
        num_classes: C, the number of classes.
        blocks: the table of the blocks.
        stem: (kernel, channels, stride) of the convolutions before the pool: three of
            3×3 (`DEEP_STEM`) or the original 7×7 (`PLAIN_STEM`).
        final_rates: rates of the `ParallelConv` that is the last layer; without rates,
            the last layer is a 1×1 convolution.

    Example:
        >>> field = ResNet(19).receptive_field
        >>> field.stride, field.centre
        (8, 0.0)

    Source: Wang et al. (2018) and their public definition; torchvision's layer names.
    """

    num_classes: int
    blocks: tuple[Block, ...] = HDC101
    stem: Stem = DEEP_STEM
    final_rates: tuple[int, ...] = (6, 12, 18, 24)
    first_layer = "conv1"

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        stem = [(k, 1, stride, k // 2) for k, _, stride in self.stem]
        blocks = [(3, row.dilation, row.stride, row.dilation) for row in self.blocks]
        return [*stem, (3, 1, 2, 1), *blocks, *score_rows(self.final_rates)]

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        for i, (kernel, channels, stride) in enumerate(self.stem, 1):
            width = self._width(channels)
            x = self._norm(x, f"conv{i}", width, train, kernel, stride)
        x = MaxPool(3, 2, 1, name="maxpool")(x)
        for row in self.blocks:
            level = Level("bottleneck", row.channels, 1, row.stride, row.dilation)
            x = self._block(x, level, row.name, train, "downsample")
        return self._scores(x, self.num_classes, self.final_rates)


class DRN(Residual):
    """Image → one score map per class, at an eighth of the image's resolution.

    Args of `__call__`: x (b, h, w, c), as for `FrontEnd`; train normalizes with the
    batch's statistics. Returns logits (b, ⌈h / 8⌉, ⌈w / 8⌉, num_classes · duc²),
    float32; cell i is centred on image pixel 8i.

    Attributes:
        num_classes: C, the number of classes.
        levels: the table.
        stem: (kernel, channels, stride) of the first convolution.

    Example:
        >>> DRN(21).output_stride, DRN(21, DRN_LIGHT, LIGHT_STEM).output_stride
        (8, 8)

    Source: §2 to §5 of Yu, Koltun & Funkhouser (2017); the authors' `drn` in PyTorch.
    """

    num_classes: int
    levels: tuple[Level, ...] = DRN_D_22
    stem: tuple[int, int, int] = (7, 16, 1)
    first_layer = "stem"

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        kernel, _, stride = self.stem
        found = [(kernel, 1, stride, kernel // 2)]
        for level in self.levels:
            for stride in (level.stride, *[1] * (level.blocks - 1)):
                wide = (3, level.dilation, stride, level.dilation)
                again = (3, level.dilation, 1, level.dilation)
                found += [wide, again] if level.kind == "basic" else [wide]
        return found

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        kernel, channels, stride = self.stem
        width = self._width(channels)
        x = self._norm(x, self.first_layer, width, train, kernel, stride)
        for number, level in enumerate(self.levels, 1):
            for index in range(level.blocks):
                row = level if index == 0 else level._replace(stride=1)
                x = self._block(x, row, f"level{number}_{index}", train, "shortcut")
        return self._scores(x, self.num_classes)


class ResidualBlock(nn.Module):
    """One block of a level; batch normalization follows each convolution.

    Where shapes differ, a 1×1 convolution brings the input to the output's shape.

    Attributes:
        level: its row of the table.
        padding: see `Residual`.
        running: see `BatchNorm`.
        shortcut: name of that 1×1 convolution.
        dtype: of the computation.
    """

    level: Level
    padding: Literal["same", "reflect"]
    running: bool
    shortcut: str
    dtype: DTypeLike

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
                x = norm(x, self.shortcut, level.outputs, 1, level.stride)
            y += x
        return nn.relu(y)
