"""Data sets, from files on disk to batches."""

from dilax.data.device_cache import held_batches, hold
from dilax.data.folder import Folder, read_folder
from dilax.data.image_files import ImageLabelFiles, list_images
from dilax.data.pipeline import (
    Augmentation,
    Batch,
    ImageExample,
    MapExample,
    Reading,
    in_order,
    training_batches,
)
from dilax.data.pixels import read_pixels
from dilax.data.scenes import Scenes
from dilax.data.source import Chosen, Joined, evenly_spread, open_source
from dilax.data.spec import DATASETS, DatasetSpec, colour_map
from dilax.data.survey import Survey, survey_folder
from dilax.data.transforms import (
    CropGeometry,
    check_crop,
    reflect_pad,
    rescale,
    resize,
    scaled_size,
    subtract_mean,
)

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "Chosen",
    "CropGeometry",
    "DatasetSpec",
    "Folder",
    "ImageExample",
    "ImageLabelFiles",
    "Joined",
    "MapExample",
    "Reading",
    "Scenes",
    "Survey",
    "check_crop",
    "colour_map",
    "evenly_spread",
    "held_batches",
    "hold",
    "in_order",
    "list_images",
    "open_source",
    "read_folder",
    "read_pixels",
    "reflect_pad",
    "rescale",
    "resize",
    "scaled_size",
    "subtract_mean",
    "survey_folder",
    "training_batches",
]
