"""The base class of all networks that turn an image into score maps.

What `DilatedNet`, prediction, training and weights ask of a front end is here, with
defaults, so that a network of your own needs little more than its layers.
"""

from flax import linen as nn

from dilax.ops import ReceptiveField, receptive_field


class Backbone(nn.Module):
    """Image → score maps: what a `DilatedNet` builds on.

    A subclass defines the field `num_classes`, `__call__(x, train=False)`, which takes
    (b, h, w, 3) images and returns (b, h', w', num_classes · duc²) float32 logits, and
    either `rows`, the table of its layers, or `output_stride`. Everything else has a
    default, for networks that pad inside.

    Attributes:
        width_multiplier: scales the channels of the networks here.
        duc: r: the last layer gives r² maps per class (see `DilatedNet`).
        padding: `"reflect"` where layers pad by reflection, which sets a smallest size.
        final_name: name of the layer that gives the scores, which weights of other
            data sets do not have.

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
        """What one cell of the last layer sees of the image, in pixels."""
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
        """Beginnings of the names of layers that no pretrained weights have."""
        return (f"{self.final_name}/",)
