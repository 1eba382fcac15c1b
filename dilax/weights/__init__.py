"""Weights of other frameworks' files, and of our own, as parameters; and back."""

from dilax.weights.flat import save_weights
from dilax.weights.load import load_weights, place_weights, read_weights
from dilax.weights.match import (
    Report,
    Row,
    check_weights,
    chosen,
    flat_shapes,
    matches_layer,
    sources,
)
from dilax.weights.names import RELEASED, Released
from dilax.weights.published import (
    PUBLISHED,
    Published,
    fetch_weights,
    weights_path,
)
from dilax.weights.stored import CAFFE, TORCHVISION, Inputs, Stored, Weights

__all__ = [
    "CAFFE",
    "PUBLISHED",
    "RELEASED",
    "TORCHVISION",
    "Inputs",
    "Published",
    "Released",
    "Report",
    "Row",
    "Stored",
    "Weights",
    "check_weights",
    "chosen",
    "fetch_weights",
    "flat_shapes",
    "load_weights",
    "matches_layer",
    "place_weights",
    "read_weights",
    "save_weights",
    "sources",
    "weights_path",
]
