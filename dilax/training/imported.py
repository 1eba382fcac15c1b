"""A released network's weights as the folder of a run, to evaluate and predict with."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from dilax.models import DilatedNet, param_shapes
from dilax.training.checkpoint import Checkpoints
from dilax.training.checks import check_config
from dilax.training.config import (
    Config,
    DataConfig,
    ModelConfig,
    StageConfig,
    build_spec,
    to_json,
)
from dilax.training.metrics import write_text
from dilax.training.step import TrainState
from dilax.weights import RELEASED, Inputs, Report, place_weights, read_weights

STAGE = "released"


def import_weights(
    path: str | Path,
    network: str,
    workdir: str | Path,
    *,
    data: DataConfig | None = None,
    width_multiplier: float = 1.0,
    head_channels: int | None = None,
    inputs: Inputs | None = None,
) -> Report:
    """Turns a file with the weights of a released network into the folder of a run.

    `load_checkpoint`, and `--mode=eval`, `predict` and `submit` take it from there.

    Args:
        path: a file that `read_weights` takes; the releases are `.caffemodel`.
        network: `"dilation8_pascal_voc"`, `"dilation8_camvid"`, `"dilation7_kitti"` or
            `"dilation10_cityscapes"`.
        workdir: the folder; it is made, and must not hold a run.
        data: the images to evaluate on; by default the network's data set, prepared.
        width_multiplier: of the front end, where the file's is not the release's.
        head_channels: likewise.
        inputs: see `read_weights`; where the file does not say either, images minus the
            mean pixel of the data set.

    Returns:
        What became of the file's layers; it is written to `init.txt` besides.

    Raises:
        ValueError: for another network, a folder that holds a run, or weights that
            cannot be read or do not fit; then nothing is written.

    Example:
        >>> import tempfile
        >>> from dilax.models import dilation8_camvid, init_params
        >>> from dilax.training import load_checkpoint
        >>> from dilax.weights import save_weights
        >>> slim = {"width_multiplier": 1 / 64, "head_channels": 8}
        >>> params = init_params(dilation8_camvid(**slim), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(params, file := f"{folder}/net.npz")
        ...     report = import_weights(file, "dilation8_camvid", folder, **slim)
        ...     model, params, spec = load_checkpoint(folder)
        >>> spec.name, len(report.loaded)
        ('CamVid', 48)
    """
    workdir = Path(workdir).expanduser().resolve()
    if network not in RELEASED:
        raise ValueError(f"network={network!r}: is none of {', '.join(RELEASED)}")
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir}: holds a run; give another folder")
    build, dataset = RELEASED[network]
    model = build(width_multiplier=width_multiplier, head_channels=head_channels)
    config = _config(network, model, data or _data(dataset))
    config.model.width_multiplier = width_multiplier
    config.model.head_channels = head_channels
    spec = build_spec(config)
    if spec.num_classes != model.num_classes:
        raise ValueError(
            f"{spec.name} has {spec.num_classes} classes, {network} {model.num_classes}"
        )
    weights = read_weights(path, inputs)
    if weights.inputs is None:
        weights = dataclasses.replace(weights, inputs=Inputs(spec.mean))
    shapes = param_shapes(model)
    params, report = place_weights(weights, model, shapes, mean=spec.mean)
    checkpoints = Checkpoints(workdir, STAGE)
    checkpoints.save(TrainState(jnp.zeros((), jnp.int32), params, {"none": ()}))
    checkpoints.close()
    write_text(workdir / "init.txt", f"{report}\n")
    write_text(workdir / "spec.json", to_json(spec))
    write_text(workdir / "config.json", to_json(config))
    return report


def _config(network: str, model: DilatedNet, data: DataConfig) -> Config:
    """The configuration whose only stage has the network."""
    context = model.context
    assert context is not None
    stage = StageConfig(STAGE, "all", context=context.layers, crop=(500, 500))
    fields = ModelConfig(
        final_name=model.front_end.final_name,
        context_prefix=context.prefix,
        context_padding="entry" if context.padding == "entry" else "layer",
        upsample=model.upsample,
    )
    config = Config(network, data, fields, (stage,))
    check_config(config)
    return config


def _data(dataset: str) -> DataConfig:
    """The images that the paper evaluates the network on."""
    match dataset:
        case "voc":
            return DataConfig("voc")
        case "camvid":
            return DataConfig("camvid", "original", val="test")
        case "kitti":
            return DataConfig("kitti", val="test")
    return DataConfig("cityscapes")
