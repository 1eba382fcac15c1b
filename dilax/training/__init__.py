"""Training in stages: configuration, steps, checkpoints, the loop."""

from dilax.training.checkpoint import load_checkpoint
from dilax.training.config import (
    Config,
    CRFConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    build_spec,
    from_json,
    validated,
)
from dilax.training.estimate import Cost, estimate
from dilax.training.imported import import_weights
from dilax.training.interrupt import Interrupted
from dilax.training.kept import predictions_folder
from dilax.training.loop import NonFiniteLoss, train
from dilax.training.losses import LossConfig
from dilax.training.machine import machine, peak_memory, read_machine, versions
from dilax.training.metrics import write_text
from dilax.training.overrides import set_field
from dilax.training.packed import pack, pretrained, pretrained_folder
from dilax.training.predictors import load_predictor
from dilax.training.recipes import (
    quickstart,
    rnn_stage,
    slim,
    slim_adam,
    structured,
    voc_paper,
    voc_rnn,
    with_crfs,
)
from dilax.training.run import check_run, open_evaluation, picture_indices

__all__ = [
    "CRFConfig",
    "Config",
    "Cost",
    "DataConfig",
    "Interrupted",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "NonFiniteLoss",
    "OptimizerConfig",
    "StageConfig",
    "build_spec",
    "check_run",
    "estimate",
    "from_json",
    "import_weights",
    "load_checkpoint",
    "load_predictor",
    "machine",
    "open_evaluation",
    "pack",
    "peak_memory",
    "picture_indices",
    "predictions_folder",
    "pretrained",
    "pretrained_folder",
    "quickstart",
    "read_machine",
    "rnn_stage",
    "set_field",
    "slim",
    "slim_adam",
    "structured",
    "train",
    "validated",
    "versions",
    "voc_paper",
    "voc_rnn",
    "with_crfs",
    "write_text",
]
