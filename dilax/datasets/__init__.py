"""Data sets: what they are, and where their images come from."""

from dilax.datasets.files import ImageLabelFiles, list_images
from dilax.datasets.folder import Folder, read_folder
from dilax.datasets.pixels import read_pixels
from dilax.datasets.scenes import Scenes
from dilax.datasets.source import Chosen, Joined, open_source
from dilax.datasets.spec import DATASETS, DatasetSpec, colour_map
from dilax.datasets.survey import Survey, survey_folder

__all__ = [
    "DATASETS",
    "Chosen",
    "DatasetSpec",
    "Folder",
    "ImageLabelFiles",
    "Joined",
    "Scenes",
    "Survey",
    "colour_map",
    "list_images",
    "open_source",
    "read_folder",
    "read_pixels",
    "survey_folder",
]
