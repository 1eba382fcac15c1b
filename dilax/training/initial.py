"""A released network's weights as the folder of a run, to evaluate and predict with.

Where a run's parameters come from: a file of weights, or another run's folder.
"""

import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dilax.data import DatasetSpec
from dilax.models import DilatedNet, param_shapes
from dilax.training.checkpoint import Checkpoints, load_checkpoint
from dilax.training.config import (
    Config,
    DataConfig,
    StageConfig,
    build_model,
    build_spec,
)
from dilax.training.network import ModelConfig
from dilax.training.records import write_text
from dilax.training.serialization import to_json
from dilax.training.stage_crf import Params
from dilax.training.step import TrainState
from dilax.training.validation import check_config
from dilax.weights import (
    PUBLISHED,
    RELEASED,
    Inputs,
    Report,
    Stored,
    Weights,
    check_weights,
    chosen,
    fetch_weights,
    flat_shapes,
    matches_layer,
    place_weights,
    read_weights,
    sources,
    weights_path,
)

# The layers that files of VGG-16 without its classifier lack.
_HEAD = ("fc6/", "fc7/")


def check_init(config: Config) -> None:
    """Refuses a recipe that is meant to start from weights, without any.

    Raises:
        ValueError: saying where the weights are to be had, and how to go without.
    """
    if config.needs_init and config.init == "" and config.model.blocks:
        raise ValueError(
            f"--config.init: {config.name!r} starts from a ResNet trained on ImageNet. "
            "Give its file, --config.init=FILE, with the stem of --config.model.stem: "
            "--config.init=resnet101 downloads resnet101-63fe2227.pth, which has "
            "((7,64,2),). --config.init=none trains from random weights"
        )
    if config.needs_init and config.init == "":
        raise ValueError(
            f"--config.init: {config.name!r} starts from VGG-16 trained on ImageNet. "
            "--config.init=vgg16 downloads torchvision's vgg16-397923af.pth, "
            "vgg16_caffe its authors' VGG_ILSVRC_16_layers.caffemodel, and vgg16_keras "
            "Keras's file of the convolutions alone. --config.init=FILE is a file that "
            "is there; --config.init=none trains from random weights"
        )
    if config.reinit and config.init == "":
        raise ValueError(
            f"--config.reinit={config.reinit}: there is no --config.init to reset"
        )


def locate_init(init: str, fetch: bool) -> str:
    """The absolute path of what a run starts from: a file, a folder, or a name's file.

    Args:
        init: a path, or a name of `PUBLISHED`.
        fetch: download the file of a name where it is not there.

    Raises:
        ValueError, OSError: as `fetch_weights`.
    """
    if fetch and init in PUBLISHED:
        return str(fetch_weights(init).resolve())
    return str(weights_path(init).resolve())


def params_from_init(
    config: Config, spec: DatasetSpec, model: DilatedNet, params: Params
) -> tuple[Params, Report]:
    """A stage's parameters from `config.init`.

    `final` may be missing there, and so may the context module as a whole, and fc6 and
    fc7 together, since many files hold VGG-16's convolutions alone: training them is
    what the run is for. The report says what starts from its initialization, and warns
    where the recipe is meant to start from all of VGG-16. A mean pixel that differs
    from the data set's goes into the first layer's bias.

    Args:
        config: says what to read, and what to leave out.
        spec: of the data set that will be trained on.
        model: of the stage.
        params: its initialization, which layers keep that are reset or missing.

    Raises:
        ValueError: as `place_weights`.
    """
    weights = _read(config)
    names = list(flat_shapes(params))
    placed, report = place_weights(
        weights,
        model,
        params,
        allow_missing=_may_lack(weights, model, names),
        reinit=_reinit(config, names),
        mean=spec.mean,
    )
    if any(matches_layer(layer, n) for layer in _HEAD for n in report.missing):
        notes = (*report.notes, _convolutions_alone(config))
        report = dataclasses.replace(report, notes=notes)
    return placed, report


def _convolutions_alone(config: Config) -> str:
    """What to say where fc6 and fc7 are not in the file."""
    note = (
        "the file holds VGG-16's convolutions alone: fc6 and fc7 start from their "
        "initialization"
    )
    if not config.needs_init:
        return note
    return (
        f"WARNING: {note}. {config.name!r} is meant to start from all of VGG-16, with "
        "its learning rates: expect other results, and check that the loss falls"
    )


def check_fits(config: Config, spec: DatasetSpec) -> None:
    """Refuses weights that do not fit, before the run's folder is claimed.

    Raises:
        ValueError: as `check_weights`, for any stage that will start from them.
    """
    weights = _read(config)
    everything: dict[str, None] = {}
    for stage in config.stages:
        model = build_model(config, stage, spec.num_classes)
        shapes = flat_shapes(param_shapes(model, len(spec.mean)))
        everything |= dict.fromkeys(shapes)
        if not stage.start:
            check_weights(
                weights,
                shapes,
                allow_missing=_may_lack(weights, model, list(shapes)),
                reinit=_reinit(config, list(shapes)),
            )
    chosen(config.reinit, everything, "--config.reinit")


def _read(config: Config) -> Weights:
    assert config.init
    path = Path(config.init)
    return _of_run(path) if path.is_dir() else read_weights(path)


def _of_run(folder: Path) -> Weights:
    """The parameters of a run's last stage, as if they lay in a file."""
    _, params, spec = load_checkpoint(folder)
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {
        name: Stored(tuple(leaf.shape), "hwio", functools.partial(np.asarray, leaf))
        for name, leaf in leaves.items()
    }
    return Weights(folder, "run", tensors, Inputs(spec.mean))


def _may_lack(weights: Weights, model: DilatedNet, names: list[str]) -> tuple[str, ...]:
    """The network's own layers, and the parts of it of which the file has nothing."""
    lacking = [f"*/{layer}" for layer in model.front_end.own_layers]
    for part in (("context/",), _HEAD):
        own = [n for n in names if any(matches_layer(layer, n) for layer in part)]
        if own and not sources(weights, own):
            lacking += [p for p in part if any(matches_layer(p, n) for n in own)]
    return tuple(lacking)


def _reinit(config: Config, names: list[str]) -> tuple[str, ...]:
    """The layers to reset that this stage has."""
    found = (p for p in config.reinit if any(matches_layer(p, n) for n in names))
    return tuple(found)


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
    stage = StageConfig(STAGE, trains="all", context=context.layers, crop=(500, 500))
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
            return DataConfig("camvid", variant="original", val="test")
        case "kitti":
            return DataConfig("kitti", val="test")
    return DataConfig("cityscapes")
