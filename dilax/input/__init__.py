"""From samples to batches: the released data layer and the Grain pipeline."""

from dilax.input.pipeline import (
    Augmentation,
    Batch,
    image_example,
    in_order,
    map_example,
    training_batches,
)
from dilax.input.transforms import (
    CropGeometry,
    check_crop,
    reflect_pad,
    rescale,
    resize,
    scaled_size,
    subtract_mean,
)

__all__ = [
    "Augmentation",
    "Batch",
    "CropGeometry",
    "check_crop",
    "image_example",
    "in_order",
    "map_example",
    "reflect_pad",
    "rescale",
    "resize",
    "scaled_size",
    "subtract_mean",
    "training_batches",
]
