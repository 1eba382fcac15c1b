"""Context modules (Yu & Koltun 2016, §3, Table 1, and Appendix A).

C score maps in, C score maps out: layers of 3×3 convolutions whose dilation doubles, so
that the receptive field grows exponentially while the resolution stays the same.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dilax.models.layers import DilatedConv
from dilax.ops import ReceptiveField, identity_init, receptive_field
from dilax.ops.dilated_conv import Padding, pad_maps


class ContextLayer(NamedTuple):
    """One 3×3 layer of a context module's table.

    Attributes:
        name: the layer's name, without the module's prefix.
        dilation: distance between taps in cells.
        multiplier: output maps as a multiple of C.

    Example:
        >>> BASIC[3].dilation, LARGE[3].multiplier
        (4, 8)
    """

    name: str
    dilation: int
    multiplier: int = 1


BASIC = (
    ContextLayer("conv1_1", 1),
    ContextLayer("conv1_2", 1),
    ContextLayer("conv2_1", 2),
    ContextLayer("conv3_1", 4),
    ContextLayer("conv4_1", 8),
    ContextLayer("conv5_1", 16),
    ContextLayer("fc1", 1),
)
LARGE = tuple(
    row._replace(multiplier=m)
    for row, m in zip(BASIC, (2, 2, 4, 8, 16, 32, 32), strict=True)
)
KITTI = tuple(row for row in BASIC if row.name != "conv5_1")
CITYSCAPES = (
    *BASIC[:-1],
    ContextLayer("conv6_1", 32),
    ContextLayer("conv7_1", 64),
    BASIC[-1],
)


def undilated(layers: tuple[ContextLayer, ...]) -> tuple[ContextLayer, ...]:
    """Return the table with dilation 1 everywhere: the control for dilation.

    Example:
        >>> {row.dilation for row in undilated(BASIC)}
        {1}
    """
    return tuple(row._replace(dilation=1) for row in layers)


class ContextModule(nn.Module):
    """Score maps → score maps that take their surroundings into account.

    Args of `__call__`: x (b, h, w, C), a front end's logits before the softmax. Returns
    logits of the same shape, float32; with `padding="none"` smaller by the radius of
    the receptive field on every side.

    Attributes:
        num_classes: C.
        layers: the 3×3 layers; a 1×1 layer `final` closes the module.
        prefix: of the layer names, `ctx_` or, in the VOC release, `ct_`.
        padding: `"layer"` (each layer by its dilation), `"entry"` (once on entry, by
            the radius: 33 cells in the VOC release), or `"none"`. Padding is with
            zeros; §5 found reflection to be equally good.
        sigma: σ of the initial noise, divided by each layer's multiplier.
        dtype: of the computation; parameters are float32.

    Example:
        >>> import jax
        >>> module = ContextModule(num_classes=2, sigma=0.0)
        >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
        >>> params = module.init(jax.random.key(0), x)
        >>> bool((module.apply(params, x) == x).all())  # it begins as the identity
        True
        >>> module.receptive_field.size
        67

    Source: paper Table 1, Eq. 4 and 5; the released network definitions.
    """

    num_classes: int
    layers: tuple[ContextLayer, ...] = BASIC
    prefix: str = "ctx_"
    padding: Literal["layer", "entry", "none"] = "layer"
    sigma: float = 0.01
    dtype: DTypeLike = jnp.float32

    @property
    def receptive_field(self) -> ReceptiveField:
        """The receptive field of one output cell, in input cells (Basic: 67)."""
        return receptive_field([(3, row.dilation) for row in self.layers])

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of its layers, as if all padded."""
        pads = self.padding != "none"
        return [(3, d, 1, d * pads) for d in (row.dilation for row in self.layers)]

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 c"]:
        del train  # no dropout here; models share one signature
        if self.padding not in ("layer", "entry", "none"):
            raise ValueError(
                f"padding={self.padding!r} is not one of 'layer', 'entry', 'none'"
            )

        def conv(name, kernel, dilation, multiplier, padding: Padding):
            return DilatedConv(
                multiplier * self.num_classes,
                kernel,
                dilation,
                padding,
                kernel_init=identity_init(self.num_classes, self.sigma / multiplier),
                dtype=self.dtype,
                name=self.prefix + name,
            )

        if self.padding == "entry":
            x = pad_maps(x, ((self.receptive_field.margin,) * 2,) * 2, "zero")
        inside: Padding = "same" if self.padding == "layer" else "valid"
        for row in self.layers:
            x = nn.relu(conv(row.name, 3, row.dilation, row.multiplier, inside)(x))
        return jnp.asarray(conv("final", 1, 1, 1, "valid")(x), jnp.float32)
