"""The whole network (Yu & Koltun 2016, §3 to §5): front end, context, upsampling.

`Backbone` is the base class of the front ends. It defines everything that `DilatedNet`,
prediction, training, and weights need to know about one, with defaults, so that your
own network needs little more than its layers. Networks also run on images whose rows
are divided over devices, if one cannot hold them.
"""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dilax.models.context import ContextModule
from dilax.ops import ReceptiveField, depth_to_space, receptive_field, upsample_bilinear
from dilax.runtime.row_shards import RowShards, row_shards


class Backbone(nn.Module):
    """Image → score maps: the base class of the front ends of a `DilatedNet`.

    A subclass defines the field `num_classes`, `__call__(x, train=False)`, which takes
    (b, h, w, 3) images and returns (b, h', w', num_classes · duc²) float32 logits, and
    either `rows`, the table of its layers, or `output_stride`. Everything else has a
    default that suits networks whose layers pad.

    Attributes:
        width_multiplier: scales the channels of the networks in this package.
        duc: r: the last layer returns r² maps per class (see `DilatedNet`).
        padding: `"reflect"` if layers pad by reflection, which needs a minimum size.
        final_name: name of the layer that computes the scores, which weights trained on
            other data sets do not contain.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dilax.models import BASIC, ContextModule, DilatedNet
        >>> class Coarse(Backbone):
        ...     num_classes: int
        ...     output_stride = 4
        ...
        ...     @nn.compact
        ...     def __call__(self, x, train=False):
        ...         x = nn.relu(nn.Conv(8, (3, 3), strides=4)(x))
        ...         return nn.Conv(self.num_classes, (1, 1), name="final")(x)
        >>> model = DilatedNet(Coarse(5), ContextModule(5, BASIC), upsample=True)
        >>> model.init_with_output(jax.random.key(0), jnp.ones((1, 32, 48, 3)))[0].shape
        (1, 32, 48, 5)
    """

    width_multiplier = 1.0
    duc = 1
    padding = "same"
    final_name = "final"

    def _width(self, channels: int) -> int:
        return max(1, round(channels * self.width_multiplier))

    @property
    def first_layer(self) -> str:
        """Name of the layer that takes the image.

        Weights for images with another mean or channel order are adapted there.
        """
        return ""

    @property
    def shards_rows(self) -> bool:
        """Whether the rows of maps may be divided over devices (`row_shards`)."""
        return False

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(kernel, dilation, stride, padding) of the layers that widen the field."""
        return []

    @property
    def receptive_field(self) -> ReceptiveField:
        """The receptive field of one cell of the last layer, in pixels."""
        return receptive_field(self.rows)

    @property
    def output_stride(self) -> int:
        """Image pixels from one cell of the scores to the next."""
        return self.receptive_field.stride

    @property
    def margin(self) -> int:
        """Pixels around the image that the network needs on every side."""
        return 0

    @property
    def own_layers(self) -> tuple[str, ...]:
        """Prefixes of the names of layers that no pretrained weights contain."""
        return (f"{self.final_name}/",)


class DilatedNet(nn.Module):
    """A front end, an optional context module after it, and upsampling of the scores.

    `model.apply({"params": params}, x)` takes x (b, h, w, 3), mean-subtracted BGR
    float32 on the 0..255 scale, padded by `margin` or not, and returns logits
    (b, h', w', C) at the network's own resolution: an eighth, or the image's where the
    network upsamples itself. Parameters: `{"front_end": …, "context": …}`.

    Dense upsampling (DUC): if the front end returns r² maps per class
    (`front_end.duc`), these are r × r scores of each cell, which the network
    rearranges. A context module in between has r² maps per class as well.

    Attributes:
        front_end: image → C score maps: a `FrontEnd`, or any other `Backbone`.
        context: score maps → score maps; None for the front end alone.
        upsample: centred bilinear upsampling inside, as Dilation10 does, which fits
            training on full-resolution labels. Otherwise the predictor upsamples the
            probabilities, top-left aligned.

    Raises:
        TypeError: if `front_end` is not a `Backbone`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dilax.models.context import BASIC
        >>> from dilax.models.front_end import FrontEnd, Layer
        >>> front_end = FrontEnd(5, (Layer("a", 3, 8), Layer("pool1", 2)))
        >>> model = DilatedNet(front_end, ContextModule(5, BASIC[:3]), upsample=True)
        >>> x = jnp.zeros((1, 16 + 2 * model.margin, 24 + 2 * model.margin, 3))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> sorted(params), model.apply({"params": params}, x).shape
        (['context', 'front_end'], (1, 16, 24, 5))

    Source: paper §3-§5 and Appendix A; for DUC, Wang et al. (2018), §3.1.
    """

    front_end: Backbone
    context: ContextModule | None = None
    upsample: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.front_end, Backbone):
            raise TypeError(
                f"front_end: {type(self.front_end).__name__} is not a dilax.Backbone; "
                "derive it from that class instead of flax.linen.Module"
            )
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.front_end.num_classes

    @property
    def margin(self) -> int:
        """Number of pixels by which an image must be padded on every side."""
        return self.front_end.margin

    @property
    def output_stride(self) -> int:
        """Image pixels from one logit to the next."""
        return 1 if self.upsample else self.map_stride // self.front_end.duc

    @property
    def map_stride(self) -> int:
        """Image pixels from one cell of the front end's maps to the next."""
        return self.front_end.output_stride

    @property
    def receptive_field(self) -> ReceptiveField:
        """The receptive field of one logit before upsampling, in pixels.

        Raises:
            ValueError: for networks that upsample maps inside (FCN-8s, SegNet), because
                their pixels differ in this; or if the front end has no `rows`.
        """
        if self.front_end.receptive_field.stride != self.map_stride:
            raise ValueError(
                f"{type(self.front_end).__name__}: no receptive field is known, "
                "because it has no `rows` or upsamples maps inside"
            )
        context = self.context.rows if self.context else []
        return receptive_field([*self.front_end.rows, *context])

    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 k"]:
        return self.from_maps(self.front_end(x, train=train), train=train)

    def maps(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        """Return the front end's logits, on which a context stage trains (§5)."""
        return self.front_end(x)

    def from_maps(
        self, maps: Float[Array, "b h w k"], train: bool = False
    ) -> Float[Array, "b h2 w2 k2"]:
        """What follows the front end: context module and upsampling."""
        logits = maps if self.context is None else self.context(maps, train=train)
        return self.enlarged(logits)

    def enlarged(self, logits: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k2"]:
        """Return the last layer's scores at the network's own output resolution."""
        factor = self.front_end.duc
        if factor > 1:
            logits = depth_to_space(logits, factor)
        if not self.upsample or self.map_stride == factor:
            return logits
        return upsample_bilinear(logits, self.map_stride // factor, "centred")


def row_mesh(rows: int) -> Mesh:
    """Return a mesh of this process's first devices, for `apply_over_rows`.

    Args:
        rows: number of devices.

    Raises:
        ValueError: if there are fewer.

    Example:
        >>> row_mesh(1).size
        1
    """
    devices = jax.local_devices()
    if not 1 <= rows <= len(devices):
        raise ValueError(f"rows={rows}: this process has only {len(devices)} devices")
    return Mesh(np.array(devices[:rows]).reshape(1, rows), ("data", "rows"))


def apply_over_rows(
    model: DilatedNet,
    params: Any,
    x: Float[Array, "b h w c"],
    mesh: Mesh,
    method: str = "__call__",
) -> Float[Array, "b h2 w2 k"]:
    """Apply the network, with the rows of all maps divided over the mesh's devices.

    Each device holds about its share of every map, and receives the further rows that a
    convolution needs from other devices. Call it inside `jit`.

    Args:
        model: the network.
        params: its parameters, on all these devices.
        x: images, as `model` takes them.
        mesh: with axes `data` and `rows`.
        method: of the network: `"__call__"` or `"maps"`.

    Raises:
        ValueError: if the network's maps cannot be divided by rows, or their sizes do
            not determine which rows are valid.

    Example:
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> params, x = init_params(net, 0), jax.numpy.zeros((1, 8, 9, 3))
        >>> jax.jit(lambda p: apply_over_rows(net, p, x, row_mesh(1)))(params).shape
        (1, 6, 7, 2)
    """
    if not model.front_end.shards_rows:
        name = type(model.front_end).__name__
        raise ValueError(f"{name}: its maps cannot be divided by rows")
    shards = RowShards(mesh)
    with row_shards(shards):
        spread = shards.spread(x, model.map_stride)
        logits: Any = model.apply({"params": params}, spread, method=method)
    return logits[:, : shards.height(logits)]
