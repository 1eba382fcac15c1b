"""The base class of all networks that turn an image into score maps.

It defines everything that `DilatedNet`, prediction, training, and weights need to know
about a front end, with defaults, so that your own network needs little more than its
layers.
"""

from flax import linen as nn

from dilax.ops import ReceptiveField, receptive_field


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
