"""Prediction at full resolution: tiles, photographs, videos, submissions."""

from dilax.inference.export import export_model, export_onnx
from dilax.inference.jobs import OUTPUTS, is_video, predict_photos
from dilax.inference.photos import (
    MAX_PIXELS,
    as_rgb,
    legend,
    overlay,
    palette_image,
    read_photo,
    save_image,
)
from dilax.inference.predictor import Predictor
from dilax.inference.submissions import write_submission
from dilax.inference.tiles import TileGrid, cut_tiles, plan_tiles
from dilax.inference.video import predict_video
from dilax.inference.workers import Outcome

__all__ = [
    "MAX_PIXELS",
    "OUTPUTS",
    "Outcome",
    "Predictor",
    "TileGrid",
    "as_rgb",
    "cut_tiles",
    "export_model",
    "export_onnx",
    "is_video",
    "legend",
    "overlay",
    "palette_image",
    "plan_tiles",
    "predict_photos",
    "predict_video",
    "read_photo",
    "save_image",
    "write_submission",
]
