"""Networks to use without training: a stage of a run as three files, and ours by name.

Such a folder holds `config.json`, `spec.json` and `weights.safetensors`. Whatever takes
a run's folder to predict with, or to start from, takes it.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from dilax.datasets import DatasetSpec
from dilax.models import DilatedNet
from dilax.training.checkpoint import PACKED, load_checkpoint
from dilax.training.config import Config, from_json, to_json
from dilax.training.metrics import write_text
from dilax.weights import save_weights

# Beside the package, in a clone: their licences are not the package's.
NETWORKS = Path(__file__).parents[2] / "pretrained"


def pack(
    workdir: str | Path,
    folder: str | Path,
    stage: str = "",
    which: Literal["last", "best"] = "last",
) -> Path:
    """Writes a trained network as a folder that loads as a run does, and is small.

    It has the parameters of the network (averaged ones, if the stage keeps an average),
    float32; neither the optimizer's state nor the stage's CRF.

    Args:
        workdir: the folder of the run.
        folder: to write; it is made, and must not hold a run.
        stage: which stage's network; the last by default.
        which: as for `load_checkpoint`.

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
    _, params, spec = load_checkpoint(root, stage, which)
    config = from_json(Config, root / "config.json")
    chosen = config.stage(stage)
    alone = dataclasses.replace(
        chosen, trains="all", inputs="images", start="", crf=None
    )
    data = dataclasses.replace(config.data, data_dir="")
    config = dataclasses.replace(config, stages=(alone,), data=data, init="", reset=())
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
