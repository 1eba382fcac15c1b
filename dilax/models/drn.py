"""Dilated residual networks (Yu, Koltun & Funkhouser 2017), C and D, at stride 8.

Residual networks whose last two levels are dilated instead of strided, with a first
level without max pooling, and last ones that take the dilation back without residuals,
which removes the grid that dilation leaves (§5). The levels are tables.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.models.layers import DilatedConv, batch_norm


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
        remat: rematerialisation: gradients compute each block's maps again.
        dtype: of the computation; parameters are float32.

    Source: §2 to §5 of the paper; the authors' `drn` in PyTorch.
    """

    num_classes: int
    levels: tuple[Level, ...] = DRN_D_22
    width_multiplier: float = 1.0
    final_name: str = "final"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def own_layers(self) -> tuple[str, ...]:
        """The layer of scores."""
        return (f"{self.final_name}/",)

    @property
    def margin(self) -> int:
        """None: maps are padded inside."""
        return 0

    @property
    def output_stride(self) -> int:
        """8."""
        stride = 1
        for level in self.levels:
            stride *= level.stride
        return stride

    @property
    def first_layer(self) -> str:
        """Name of the layer that takes the image."""
        return "stem"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        first = self._slim(self.levels[0])
        conv = DilatedConv(
            first.channels,
            7,
            padding="same",
            dtype=self.dtype,
            use_bias=False,
            name=self.first_layer,
        )
        x = nn.relu(batch_norm(self, "stem_bn", train, self.dtype)(conv(x)))
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for number, level in enumerate(map(self._slim, self.levels), 1):
            for index in range(level.blocks):
                row = level if index == 0 else level._replace(stride=1)
                name = f"level{number}_{index}"
                x = block(row, self.dtype, name=name)(x, train)
        final = DilatedConv(
            self.num_classes,
            1,
            kernel_init=nn.initializers.normal(0.001),
            dtype=self.dtype,
            name=self.final_name,
        )
        return jnp.asarray(final(x), jnp.float32)

    def _slim(self, level: Level) -> Level:
        return level._replace(
            channels=max(1, round(level.channels * self.width_multiplier))
        )


class Block(nn.Module):
    """One block of a level; batch normalisation follows each convolution.

    Where shapes differ, a 1×1 convolution brings the input to that of the output.

    Attributes:
        level: its row of the table.
        dtype: of the computation.
    """

    level: Level
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        level, y = self.level, x
        rows = {
            "conv": ((3, level.channels),),
            "basic": ((3, level.channels), (3, level.channels)),
            "bottleneck": (
                (1, level.channels),
                (3, level.channels),
                (1, level.outputs),
            ),
        }[level.kind]
        widest = [kernel for kernel, _ in rows].index(3)  # takes the stride
        for number, (kernel, channels) in enumerate(rows, 1):
            if number > 1:
                y = nn.relu(y)
            stride = level.stride if number - 1 == widest else 1
            y = self._conv(y, train, f"conv{number}", kernel, channels, stride)
        if level.kind != "conv" and level.residual:
            if level.stride > 1 or x.shape[-1] != level.outputs:
                x = self._conv(x, train, "shortcut", 1, level.outputs, level.stride)
            y += x
        return nn.relu(y)

    def _conv(self, x, train: bool, name: str, kernel: int, channels: int, stride: int):
        """A convolution, dilated where it has taps, with its normalisation."""
        conv = DilatedConv(
            channels,
            kernel,
            self.level.dilation if kernel > 1 else 1,
            "same",
            dtype=self.dtype,
            stride=stride,
            use_bias=False,
            name=name,
        )
        return batch_norm(self, f"{name}_bn", train, self.dtype)(conv(x))
