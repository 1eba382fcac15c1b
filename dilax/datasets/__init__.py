"""Data sets: what they are, and where their images come from."""

from dilax.datasets.files import ImageLabelFiles, list_images, read_image, read_pixels
from dilax.datasets.folder import Survey, folder_splits, survey_folder
from dilax.datasets.scenes import Scenes
from dilax.datasets.source import Chosen, Joined, open_source
from dilax.datasets.spec import DATASETS, DatasetSpec, colour_map

__all__ = [
    "DATASETS",
    "Chosen",
    "DatasetSpec",
    "ImageLabelFiles",
    "Joined",
    "Scenes",
    "Survey",
    "colour_map",
    "folder_splits",
    "list_images",
    "open_source",
    "read_image",
    "read_pixels",
    "survey_folder",
]
