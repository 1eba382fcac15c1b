"""Data sets, from files on disk to batches."""

from dilax.data.pipeline import Reading, in_order, training_batches
from dilax.data.pixels import read_pixels
from dilax.data.scenes import Scenes
from dilax.data.source import Chosen, evenly_spread, open_source
from dilax.data.spec import DATASETS, DatasetSpec, colour_map, distinct_colours
from dilax.data.survey import survey_folder
from dilax.data.transforms import (
    Augmentation,
    CropGeometry,
    ImageExample,
    reflect_pad,
    resize,
    scaled_size,
    subtract_mean,
)

__all__ = [
    "DATASETS",
    "Augmentation",
    "Chosen",
    "CropGeometry",
    "DatasetSpec",
    "ImageExample",
    "Reading",
    "Scenes",
    "colour_map",
    "distinct_colours",
    "evenly_spread",
    "in_order",
    "open_source",
    "read_pixels",
    "reflect_pad",
    "resize",
    "scaled_size",
    "subtract_mean",
    "survey_folder",
    "training_batches",
]
