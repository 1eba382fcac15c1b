"""Dilated residual networks (Yu, Koltun & Funkhouser 2017), C and D, at stride 8.

Residual networks whose last two levels are dilated instead of strided, with a first
level without max pooling, and last ones that take the dilation back without residuals,
which removes the grid that dilation leaves (§5). The levels are tables.
"""

import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.models.layers import conv_norm, score_layer
from dilax.ops import ReceptiveField, receptive_field


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
