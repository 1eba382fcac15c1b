"""The predictor of a trained stage: its network, and its CRF if it has one."""

from pathlib import Path
from typing import Any, Literal

from dilax.datasets import DatasetSpec
from dilax.inference import Predictor
from dilax.inference.refinement import CRF
from dilax.models import DilatedNet
from dilax.training.checkpoint import stage_params
from dilax.training.config import Config, StageConfig, build_model, from_json
from dilax.training.dense import found_dense
from dilax.training.structured import Params, build_rnn


def load_predictor(
    workdir: str | Path,
    stage: str = "",
    which: Literal["last", "best"] = "last",
    batch_size: int = 1,
    **options: Any,
) -> Predictor:
    """The predictor of a trained stage, its CRF included.

    Args:
        workdir: the folder that `train` wrote.
        stage: which stage's; the recipe's last by default.
        which: see `load_checkpoint`; a dense CRF stands on its start's last step.
        batch_size: of `Predictor`.
        **options: of `Predictor`, such as `mode`.

    Raises:
        ValueError: as `load_checkpoint`, or if the stage's dense CRF was not found yet.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from dilax.training.loop import train
        >>> from dilax.training.recipes import quickstart
        >>> config = quickstart()
        >>> config.stages = config.stages[:1]
        >>> config.stages[0].steps = 1
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     results = train(config, workdir)
        ...     predictor = load_predictor(workdir)
        >>> predictor(np.zeros((40, 50, 3), np.uint8)).shape
        (40, 50)
    """
    root = Path(workdir).expanduser()
    config = from_json(Config, root / "config.json")
    spec = from_json(DatasetSpec, root / "spec.json")
    chosen = config.stage(stage)
    model = build_model(config, chosen, spec.num_classes)
    params = stage_params(root, config, chosen.name, spec, which)
    return stage_predictor(root, chosen, model, params, spec, batch_size, **options)


def stage_predictor(
    workdir: Path,
    stage: StageConfig,
    model: DilatedNet,
    params: Params,
    spec: DatasetSpec,
    batch_size: int,
    **options: Any,
) -> Predictor:
    """A stage's predictor from its network and parameters."""
    crf: CRF | None = None
    if stage.crf is not None and stage.crf.kind == "rnn":
        crf = build_rnn(stage.crf, spec.num_classes)
    elif stage.crf is not None:
        crf = found_dense(workdir, stage)
    return Predictor(model, params, spec, batch_size, crf=crf, **options)
