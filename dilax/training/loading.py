"""Loading from the folder of a run: its networks, and the images to evaluate on.

A packed folder contains one network: `config.json`, `spec.json`, `weights.safetensors`,
and the parameters of its dense CRF, if it has one. It can be used in place of a run's
folder, for prediction or as initial weights.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from dilax.crf import DenseCRF
from dilax.data import DatasetSpec, open_source
from dilax.inference import Predictor
from dilax.inference.predictor import CRF
from dilax.models import DilatedNet
from dilax.runtime.files import shipped, write_text
from dilax.training.build import Params, build_model, build_rnn, filled
from dilax.training.checkpoint import PACKED, Choice, stage_params, unfinished_step
from dilax.training.config import Config, CRFConfig, DataConfig, StageConfig
from dilax.training.serialization import from_json, to_json
from dilax.weights import save_weights

NETWORKS = shipped("pretrained")  # their licences are not the package's


class Trained(NamedTuple):
    """A trained network: the first three arguments of `Predictor`.

    Attributes:
        model: the network.
        params: its parameters.
        spec: classes, colours, mean pixel and tile of its data set.

    Example:
        >>> trained = pretrained("camvid")
        >>> trained.model.num_classes, trained.spec.classes[2]
        (11, 'Sky')
        >>> Predictor(*trained).spec is trained.spec
        True
    """

    model: DilatedNet
    params: Any
    spec: DatasetSpec


def load_checkpoint(
    workdir: str | Path, stage: str = "", checkpoint: Choice = "last"
) -> Trained:
    """Load a trained network from the folder of a run.

    The result is only the network; `load_predictor` includes the stage's CRF.

    Args:
        workdir: the folder that `train` wrote.
        stage: name of the stage; by default the last one.
        checkpoint: `"last"`, or `"best"`: the one with the highest mean IoU in the
            evaluations during training.

    Returns:
        (model, params, spec).

    Raises:
        ValueError: naming the file, if the folder is not a run's, the stage is unknown
            or untrained, or the checkpoint belongs to another model.

    Example:
        >>> import dataclasses, tempfile
        >>> from dilax.training import quickstart, train
        >>> config = quickstart()
        >>> first = dataclasses.replace(config.stages[0], steps=1)
        >>> config = dataclasses.replace(config, stages=(first,))
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     results = train(config, workdir)
        ...     model, params, spec = load_checkpoint(workdir)
        >>> model.num_classes, list(params), spec.name
        (8, ['front_end'], 'scenes')
    """
    _, _, trained = _load(Path(workdir), stage, checkpoint)
    network = {name: p for name, p in trained.params.items() if name != "crf"}
    return trained._replace(params=network)


def load_predictor(
    workdir: str | Path,
    stage: str = "",
    checkpoint: Choice = "last",
    batch_size: int = 1,
    **options: Any,
) -> Predictor:
    """Load the predictor of a trained stage, including its CRF.

    Args:
        workdir: the folder that `train` wrote.
        stage: as for `load_checkpoint`.
        checkpoint: as for `load_checkpoint`; a dense CRF always follows the last.
        batch_size: of `Predictor`.
        **options: of `Predictor`, such as `mode`.

    Raises:
        ValueError: as `load_checkpoint`, or if the dense CRF has not been searched yet.

    Example:
        >>> import numpy as np
        >>> predictor = load_predictor(pretrained_folder("camvid"))
        >>> predictor(np.zeros((40, 50, 3), np.uint8)).shape
        (40, 50)
    """
    root = Path(workdir).expanduser()
    _, chosen, trained = _load(root, stage, checkpoint)
    return stage_predictor(root, chosen, trained, batch_size, **options)


def stage_predictor(
    workdir: Path, stage: StageConfig, trained: Trained, batch_size: int, **options: Any
) -> Predictor:
    """Return the predictor of a stage's network and its CRF."""
    crf: CRF | None = None
    if stage.crf_kind == "dense":
        crf = found_dense(workdir, stage)
    elif stage.crf:
        crf = build_rnn(stage.crf, trained.spec.num_classes)
    return Predictor(*trained, batch_size, crf=crf, **options)


def found_dense(workdir: Path, stage: StageConfig) -> DenseCRF:
    """Return the dense CRF whose parameters `find_dense` stored.

    Raises:
        ValueError: naming the file, if it is missing.
    """
    path = dense_file(workdir, stage)
    if not path.is_file():
        raise ValueError(f"{path}: no dense CRF of stage {stage.name!r}; train first")
    return filled(DenseCRF, vars(from_json(CRFConfig, path)))


def dense_file(workdir: Path, stage: StageConfig) -> Path:
    """Return where the parameters of a stage's dense CRF are stored."""
    return Path(workdir) / "crf" / f"{stage.name}.json"


def _load(
    workdir: Path, stage: str, checkpoint: Choice
) -> tuple[Config, StageConfig, Trained]:
    root = workdir.expanduser()
    config = from_json(Config, root / "config.json")
    spec = from_json(DatasetSpec, root / "spec.json")
    chosen = config.stage(stage)
    if (step := unfinished_step(root, chosen)) is not None:
        message = "%s: stage %s is unfinished, at step %d of %d"
        logging.warning(message, root, chosen.name, step, chosen.steps)
    model = build_model(config, chosen, spec.num_classes)
    params: Params = stage_params(root, config, chosen.name, spec, checkpoint)
    return config, chosen, Trained(model, params, spec)


def open_evaluation(
    workdir: Path, data_dir: str = "", split: str = ""
) -> tuple[Config, DatasetSpec, Sequence[dict]]:
    """Open the configuration, data set, and evaluation images of a run's folder.

    Args:
        workdir: the run's folder.
        data_dir: location of the data, if it has moved.
        split: the split to open; "" is the one that the run evaluates on.

    Example:
        >>> import tempfile
        >>> from dilax.training import build_spec, quickstart
        >>> config = quickstart()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "config.json"), to_json(config))
        ...     write_text(Path(folder, "spec.json"), to_json(build_spec(config)))
        ...     _, spec, images = open_evaluation(Path(folder))
        >>> spec.name, len(images)
        ('scenes', 100)
    """
    config = from_json(Config, workdir / "config.json")
    spec = from_json(DatasetSpec, workdir / "spec.json")
    data = dataclasses.replace(
        config.data,
        data_dir=data_dir or config.data.data_dir,
        val=split or config.data.val,
    )
    config = dataclasses.replace(config, data=data)
    return config, spec, open_split(data, spec, data.val)


def open_split(data: DataConfig, spec: DatasetSpec, split: str) -> Sequence[dict]:
    """Open a split of a run's data."""
    return open_source(
        data.dataset,
        spec,
        data.data_dir,
        split,
        variant=data.variant,
        images=data.images,
        labels=data.labels,
        seed=data.seed,
        skip_unreadable=data.skip_unreadable,
    )


def pack(
    workdir: str | Path,
    folder: str | Path,
    stage: str = "",
    checkpoint: Choice = "last",
) -> Path:
    """Write a trained network as a small folder that loads like a run.

    It contains the network's parameters (the moving averages, if the stage keeps any)
    in float32, without the optimizer's state, and its CRF, if the stage has one.

    Args:
        workdir: the folder of the run.
        folder: the folder to write; it is created, and must not contain a run.
        stage: as for `load_checkpoint`.
        checkpoint: as for `load_checkpoint`.

    Returns:
        The folder.

    Raises:
        ValueError: as `load_checkpoint`, or if the folder contains a run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folder = pack(pretrained_folder("camvid"), f"{root}/packed")
        ...     sorted(path.name for path in folder.iterdir())
        ['config.json', 'spec.json', 'weights.safetensors']
    """
    root, folder = Path(workdir).expanduser(), Path(folder).expanduser()
    if (folder / "config.json").exists():
        raise ValueError(f"{folder}: contains a network; give another folder")
    config, chosen, trained = _load(root, stage, checkpoint)
    alone = dataclasses.replace(chosen, trains="all", inputs="images", start="")
    data = dataclasses.replace(config.data, data_dir="")
    config = dataclasses.replace(config, stages=(alone,), data=data, init="", reinit=())
    if chosen.crf_kind == "dense":
        found_dense(root, chosen)  # raises an error if it has not been searched
        text = dense_file(root, chosen).read_text("utf-8")
        write_text(dense_file(folder, chosen), text)
    save_weights(trained.params, folder / PACKED, mean=trained.spec.mean)
    write_text(folder / "spec.json", to_json(trained.spec))
    write_text(folder / "config.json", to_json(config))
    return folder


def pretrained(name: str) -> Trained:
    """Load a network that is included with dilax.

    Each has a card, `pretrained/NAME/README.md`, with its data, recipe, accuracy,
    limits, and licence, which differs from that of the package.

    Args:
        name: `"camvid"`: street scenes in eleven classes.

    Returns:
        (model, params, spec).

    Raises:
        ValueError: if there is none of this name; it lists the names.

    Example:
        >>> model, params, spec = pretrained("camvid")
        >>> spec.classes[:3]
        ('Building', 'Tree', 'Sky')
    """
    return load_checkpoint(pretrained_folder(name))


def included_networks() -> list[str]:
    """Return the names that `pretrained` takes."""
    return sorted(path.parent.name for path in NETWORKS.glob(f"*/{PACKED}"))


def pretrained_folder(name: str) -> Path:
    """Return the folder of the included network of this name.

    Raises:
        ValueError: as `pretrained`.

    Example:
        >>> pretrained_folder("camvid").name
        'camvid'
    """
    there = included_networks()
    if name not in there:
        found = ", ".join(there) or "no networks"
        raise ValueError(f"pretrained {name!r}: {NETWORKS} contains {found}")
    return NETWORKS / name
