"""Prediction at full resolution, by tiles; label maps as files, also as submissions."""

from dilax.inference.files import (
    as_rgb,
    overlay,
    palette_image,
    predict_files,
    save_image,
)
from dilax.inference.predictor import Predictor
from dilax.inference.submissions import write_submission
from dilax.inference.tiles import TileGrid, cut_tiles, join_tiles, plan_tiles

__all__ = [
    "Predictor",
    "TileGrid",
    "as_rgb",
    "cut_tiles",
    "join_tiles",
    "overlay",
    "palette_image",
    "plan_tiles",
    "predict_files",
    "save_image",
    "write_submission",
]
