"""FCN-8s (Long et al. 2015): VGG-16 at stride 32, and scores of finer layers added."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dilax.models.front_end import VGG16, FrontEnd, Layer, Pool
from dilax.ops import upsample_bilinear
from dilax.ops.dilated_conv import Padding
from dilax.ops.row_shards import refuse_shards


def _with_all_pools() -> tuple[Layer, ...]:
    """VGG-16 undilated, with the two pools that the front end took out."""
    rows = []
    for row in VGG16:
        rows.append(row._replace(dilation=1))
        if row.name in ("conv4_3", "conv5_3"):
            rows.append(Layer(f"pool{row.name[4]}", 2))
    return tuple(rows)


FCN_VGG16 = _with_all_pools()
_ENTRY = 100  # cells of zeros around the image, so that fc6 finds its 7×7 cells


class FCN8s(FrontEnd):
    """Image → one score map a class, at the image's own resolution.

    Args of `__call__`: as `FrontEnd`, images of any size. Returns (b, h, w,
    num_classes) float32.

    The scores of stride 32 are enlarged and added to those of pool4, these to those of
    pool3, and that to the image's size. Enlarging is bilinear and fixed; the first
    convolution is padded by 100, fc6 not at all, and what is too much is cut off.

    Example:
        >>> FCN8s(21).output_stride
        1

    Source: §4 of the paper; the released `voc-fcn8s`.
    """

    layers: tuple[Layer | Pool, ...] = FCN_VGG16
    final_name: str = "score_fr"
    padding: Literal["valid", "same", "reflect"] = "same"

    @property
    def own_layers(self) -> tuple[str, ...]:
        """The three layers of scores."""
        return ("score_",)

    @property
    def output_stride(self) -> int:
        """1."""
        return 1

    @property
    def spreads_rows(self) -> bool:
        """False: maps are enlarged inside."""
        return False

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
    """(n + 1)·factor cells of n: a transposed convolution with all of its border."""
    refuse_shards("FCN-8s")
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    half = factor // 2
    return upsample_bilinear(padded, factor, "centred")[:, half:-half, half:-half]


def _cut(x, offset: int, size: tuple):
    h, w = size
    return x[:, offset : offset + h, offset : offset + w]
