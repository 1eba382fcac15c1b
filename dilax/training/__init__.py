"""Training in stages: configuration, steps, checkpoints, the loop."""

from dilax.runtime.files import write_text
from dilax.training.build import build_spec
from dilax.training.config import (
    Config,
    CRFConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)
from dilax.training.estimate import Cost, estimate, profile
from dilax.training.initial import import_weights, with_network_of_init
from dilax.training.loading import (
    Trained,
    load_checkpoint,
    load_predictor,
    open_evaluation,
    pack,
    pretrained,
    pretrained_folder,
)
from dilax.training.loop import train
from dilax.training.losses import LossConfig
from dilax.training.recipes import (
    Schedule,
    adam,
    fine_tuned,
    from_scratch,
    quickstart,
    rnn_stage,
    structured,
    with_crfs,
)
from dilax.training.records import NonFiniteLoss, machine, read_machine, versions
from dilax.training.run import check_run, predictions_folder
from dilax.training.serialization import from_json, set_field, validated

__all__ = [
    "CRFConfig",
    "Config",
    "Cost",
    "DataConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "NonFiniteLoss",
    "OptimizerConfig",
    "Schedule",
    "StageConfig",
    "Trained",
    "adam",
    "build_spec",
    "check_run",
    "estimate",
    "fine_tuned",
    "from_json",
    "from_scratch",
    "import_weights",
    "load_checkpoint",
    "load_predictor",
    "machine",
    "open_evaluation",
    "pack",
    "predictions_folder",
    "pretrained",
    "pretrained_folder",
    "profile",
    "quickstart",
    "read_machine",
    "rnn_stage",
    "set_field",
    "structured",
    "train",
    "validated",
    "versions",
    "with_crfs",
    "with_network_of_init",
    "write_text",
]
