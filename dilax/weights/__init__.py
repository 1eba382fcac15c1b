"""Reading weights from files of other frameworks and our own, and writing our own."""

from dilax.weights.caffe import RELEASED
from dilax.weights.formats import (
    PUBLISHED,
    Published,
    fetch_weights,
    read_weights,
    save_weights,
    weights_path,
)
from dilax.weights.load import Report, flat_shapes, load_weights
from dilax.weights.resolve import select_layers, selects
from dilax.weights.stored import CAFFE, TORCHVISION, Inputs

__all__ = [
    "CAFFE",
    "PUBLISHED",
    "RELEASED",
    "TORCHVISION",
    "Inputs",
    "Published",
    "Report",
    "fetch_weights",
    "flat_shapes",
    "load_weights",
    "read_weights",
    "save_weights",
    "select_layers",
    "selects",
    "weights_path",
]
