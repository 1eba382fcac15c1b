"""Weights of other frameworks' files, and of our own, as parameters; and back."""

from dilax.weights.flat import save_weights
from dilax.weights.load import (
    Report,
    Row,
    assign_weights,
    check_weights,
    flat_shapes,
    load_weights,
    read_weights,
)
from dilax.weights.published import (
    PUBLISHED,
    RELEASED,
    Published,
    Released,
    fetch_weights,
    weights_path,
)
from dilax.weights.resolve import Resolved, resolve, select_layers, selects
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
    "Resolved",
    "Row",
    "Stored",
    "Weights",
    "assign_weights",
    "check_weights",
    "fetch_weights",
    "flat_shapes",
    "load_weights",
    "read_weights",
    "resolve",
    "save_weights",
    "select_layers",
    "selects",
    "weights_path",
]
