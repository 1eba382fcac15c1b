"""From samples to batches: the released data layer and the Grain pipeline."""

from dilax.input.held import held_batches, hold
from dilax.input.pipeline import (
    Augmentation,
    Batch,
    ImageExample,
    MapExample,
    Reading,
    in_order,
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
    "ImageExample",
    "MapExample",
    "Reading",
    "check_crop",
    "held_batches",
    "hold",
    "in_order",
    "reflect_pad",
    "rescale",
    "resize",
    "scaled_size",
    "subtract_mean",
    "training_batches",
]
