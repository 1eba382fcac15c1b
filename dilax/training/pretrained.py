"""Networks to use without training: a stage of a run as three files, and ours by name.

Such a folder holds `config.json`, `spec.json` and `weights.safetensors`. Whatever takes
a run's folder to predict with, or to start from, takes it.

The predictor of a trained stage: its network, and its CRF if it has one.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from dilax.data import DatasetSpec
from dilax.inference import Predictor
from dilax.inference.predictor import CRF
from dilax.models import DilatedNet
from dilax.runtime.files import shipped
from dilax.training.checkpoint import PACKED, load_checkpoint, stage_params
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.crf_parameters import found_dense
from dilax.training.records import write_text
from dilax.training.serialization import from_json, to_json
from dilax.training.stage_crf import Params, build_rnn
from dilax.weights import save_weights


def load_predictor(
    workdir: str | Path,
    stage: str = "",
    checkpoint: Literal["last", "best"] = "last",
    batch_size: int = 1,
    **options: Any,
) -> Predictor:
    """The predictor of a trained stage, its CRF included.

    Args:
        workdir: the folder that `train` wrote.
        stage: which stage's; the recipe's last by default.
        checkpoint: see `load_checkpoint`; a dense CRF stands on its start's last step.
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
    params = stage_params(root, config, chosen.name, spec, checkpoint)
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


NETWORKS = shipped("pretrained")  # their licences are not the package's


def pack(
    workdir: str | Path,
    folder: str | Path,
    stage: str = "",
    checkpoint: Literal["last", "best"] = "last",
) -> Path:
    """Writes a trained network as a folder that loads as a run does, and is small.

    It has the parameters of the network (averaged ones, if the stage keeps an average),
    float32; neither the optimizer's state nor the stage's CRF.

    Args:
        workdir: the folder of the run.
        folder: to write; it is made, and must not hold a run.
        stage: which stage's network; the last by default.
        checkpoint: as for `load_checkpoint`.

    Returns:
        The folder.

    Raises:
        ValueError: as `load_checkpoint`, or if the folder holds a run.

    Example:
        >>> import tempfile
        >>> from dilax.training import import_weights
        >>> from dilax.models import dilation8_camvid, init_params
        >>> slim = {"width_multiplier": 1 / 64, "head_channels": 8}
        >>> params = init_params(dilation8_camvid(**slim), seed=0)
        >>> with tempfile.TemporaryDirectory() as root:
        ...     save_weights(params, file := f"{root}/net.npz")
        ...     _ = import_weights(file, "dilation8_camvid", f"{root}/run", **slim)
        ...     folder = pack(f"{root}/run", f"{root}/packed")
        ...     sorted(path.name for path in folder.iterdir())
        ['config.json', 'spec.json', 'weights.safetensors']
    """
    root, folder = Path(workdir).expanduser(), Path(folder).expanduser()
    if (folder / "config.json").exists():
        raise ValueError(f"{folder}: holds a network; give another folder")
    _, params, spec = load_checkpoint(root, stage, checkpoint)
    config = from_json(Config, root / "config.json")
    chosen = config.stage(stage)
    alone = dataclasses.replace(
        chosen, trains="all", inputs="images", start="", crf=None
    )
    data = dataclasses.replace(config.data, data_dir="")
    config = dataclasses.replace(config, stages=(alone,), data=data, init="", reinit=())
    save_weights(params, folder / PACKED, mean=spec.mean)
    write_text(folder / "spec.json", to_json(spec))
    write_text(folder / "config.json", to_json(config))
    return folder


def pretrained(name: str) -> tuple[DilatedNet, Any, DatasetSpec]:
    """A network that we trained: (model, params, spec), as `Predictor` takes them.

    Each has a card, `pretrained/NAME/README.md`: data, recipe, accuracy, limits and
    licence, which is not that of the package.

    Args:
        name: `"camvid"`: streets in eleven classes.

    Raises:
        ValueError: for another name, or where they are not: they come with a clone of
            the repository.

    Example:
        >>> model, params, spec = pretrained("camvid")
        >>> spec.classes[:3]
        ('Building', 'Tree', 'Sky')
    """
    return load_checkpoint(pretrained_folder(name))


def pretrained_folder(name: str) -> Path:
    """Where the network of that name lies.

    Raises:
        ValueError: as `pretrained`.

    Example:
        >>> pretrained_folder("camvid").name
        'camvid'
    """
    there = sorted(path.parent.name for path in NETWORKS.glob(f"*/{PACKED}"))
    if name not in there:
        found = ", ".join(there) or "nothing: they come with a clone of the repository"
        raise ValueError(f"pretrained {name!r}: {NETWORKS} has {found}")
    return NETWORKS / name
