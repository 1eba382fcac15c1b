"""Weights of other frameworks' files, and of our own, as parameters; and back."""

from dilax.weights.flat import save_weights
from dilax.weights.inputs import CAFFE, TORCHVISION, Inputs
from dilax.weights.load import load_weights, read_weights
from dilax.weights.match import (
    check_weights,
    chosen,
    flat_shapes,
    matches_layer,
    sources,
)
from dilax.weights.names import RELEASED, Released
from dilax.weights.place import place_weights
from dilax.weights.report import Report, Row
from dilax.weights.stored import Stored, Weights

__all__ = [
    "CAFFE",
    "RELEASED",
    "TORCHVISION",
    "Inputs",
    "Released",
    "Report",
    "Row",
    "Stored",
    "Weights",
    "check_weights",
    "chosen",
    "flat_shapes",
    "load_weights",
    "matches_layer",
    "place_weights",
    "read_weights",
    "save_weights",
    "sources",
]
