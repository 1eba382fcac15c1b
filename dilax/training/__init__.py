"""Training in stages: configuration, steps, checkpoints, the loop."""

from dilax.training.checkpoint import load_checkpoint
from dilax.training.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    slim_adam,
    validated,
)
from dilax.training.interrupt import Interrupted
from dilax.training.loop import NonFiniteLoss, open_evaluation, picture_indices, train
from dilax.training.metrics import write_text
from dilax.training.overrides import set_field

__all__ = [
    "Config",
    "DataConfig",
    "Interrupted",
    "ModelConfig",
    "NonFiniteLoss",
    "OptimizerConfig",
    "StageConfig",
    "load_checkpoint",
    "open_evaluation",
    "picture_indices",
    "set_field",
    "slim_adam",
    "train",
    "validated",
    "write_text",
]
