"""The weights that a run starts from (VGG-16, paper §4), and released networks as runs.

The weights come from a file, or from the folder of another run.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dilax.data import DatasetSpec
from dilax.models import DilatedNet, param_shapes
from dilax.runtime.files import write_text
from dilax.training.build import Params, build_model, build_spec, check_config
from dilax.training.checkpoint import Checkpoints, forget
from dilax.training.config import Config, DataConfig, ModelConfig, StageConfig
from dilax.training.loading import included_networks, load_checkpoint, pretrained_folder
from dilax.training.serialization import from_json, to_json
from dilax.training.step import TrainState
from dilax.weights import (
    PUBLISHED,
    RELEASED,
    Inputs,
    Report,
    fetch_weights,
    flat_shapes,
    read_weights,
    select_layers,
    selects,
    weights_path,
)
from dilax.weights.load import assign_weights, check_weights
from dilax.weights.resolve import resolve_weights
from dilax.weights.stored import Stored, Weights

# The layers that files of VGG-16 without its classifier lack.
_HEAD = ("fc6/", "fc7/")


def check_init(config: Config) -> None:
    """Check that a recipe that needs initial weights has some.

    Raises:
        ValueError: saying where to get the weights, and how to train without them.
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
            "vgg16_caffe the authors' VGG_ILSVRC_16_layers.caffemodel, and vgg16_keras "
            "Keras's file of the convolutions only. --config.init=FILE reads your own "
            "file; --config.init=none trains from random weights"
        )
    for field in ("reinit", "init_key"):
        if (value := getattr(config, field)) and config.init == "":
            raise ValueError(f"--config.{field}={value}: give --config.init, too")


def with_network_of_init(config: Config) -> Config:
    """Return the configuration with the network of the run that it starts from.

    If `config.init` is a file, or empty, the configuration is returned unchanged.

    Raises:
        ValueError: naming the file, if the run's configuration cannot be read.

    Example:
        >>> from dilax.training import quickstart
        >>> config = dataclasses.replace(quickstart(), init="camvid")
        >>> with_network_of_init(config).model.network
        'drn_light'
    """
    path = Path(locate_init(config.init or "", fetch=False)) / "config.json"
    if not config.init or not path.exists():
        return config
    theirs = from_json(Config, path)
    return dataclasses.replace(config, model=theirs.stages[-1].model or theirs.model)


def locate_init(init: str, fetch: bool) -> str:
    """Return the absolute path of the file or folder that a run starts from.

    Args:
        init: a path, a name of `PUBLISHED`, or that of a network that comes with dilax.
        fetch: download published weights if they are missing.

    Raises:
        ValueError, OSError: as `fetch_weights`.
    """
    if fetch and init in PUBLISHED:
        return str(fetch_weights(init).resolve())
    included = init in included_networks()
    path = pretrained_folder(init) if included else weights_path(init)
    return str(path.resolve())


def params_from_init(
    config: Config, spec: DatasetSpec, model: DilatedNet, params: Params
) -> tuple[Params, Report]:
    """Load a stage's parameters from `config.init`.

    The file may lack `final`, the whole context module, and fc6 and fc7 together,
    because many files contain only the convolutions of VGG-16. The run trains these
    layers. The report says what keeps its initialization, and warns if the recipe is
    meant to start from all of VGG-16. If the mean pixel differs from the data set's,
    the bias of the first layer is adapted.

    Args:
        config: names the file to read, and the layers to reinitialize.
        spec: the data set to train on.
        model: of the stage.
        params: its initialization, which reinitialized or missing layers keep.

    Raises:
        ValueError: as `assign_weights`.
    """
    weights = _read(config)
    loaded, report = assign_weights(
        weights,
        model,
        params,
        **_options(config, weights, model, flat_shapes(params)),
        mean=spec.mean,
    )
    if any(selects(layer, n) for layer in _HEAD for n in report.missing):
        note = (
            "the file contains only the convolutions of VGG-16: fc6 and fc7 start from "
            "their initialization. --config.reinit=fc6,fc7,final states this, and is "
            "the usual way to use such files"
        )
        if config.needs_init:
            note = (
                f"WARNING: {note}. {config.name!r} and its learning rates are meant "
                "for all of VGG-16: expect different results. With new layers, VOC's "
                "rate of 1e-3 diverged within ten steps of one crop, but not with "
                f"--config.stages.{config.stages[0].name}.optimizer.warmup=300"
            )
        report = dataclasses.replace(report, notes=(*report.notes, note))
    return loaded, report


def check_fits(config: Config, spec: DatasetSpec) -> None:
    """Check that the weights fit every stage that starts from them.

    Raises:
        ValueError: as `check_weights`.
    """
    weights = _read(config)
    everything: dict[str, None] = {}
    for stage in config.stages:
        model = build_model(config, stage, spec.num_classes)
        shapes = flat_shapes(param_shapes(model, len(spec.mean)))
        everything |= dict.fromkeys(shapes)
        if not stage.start:
            check_weights(weights, shapes, **_options(config, weights, model, shapes))
    select_layers(config.reinit, everything, "--config.reinit")


def _read(config: Config) -> Weights:
    assert config.init
    path = Path(config.init)
    if not path.is_dir():
        return read_weights(path)
    _, params, spec = load_checkpoint(path)  # of a run's last stage
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {
        name: Stored(tuple(leaf.shape), "hwio", functools.partial(np.asarray, leaf))
        for name, leaf in leaves.items()
    }
    return Weights(path, "run", tensors, Inputs(spec.mean))


def _options(
    config: Config,
    weights: Weights,
    model: DilatedNet,
    shapes: dict[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Return the arguments of `check_weights`.

    The file may lack `final`, the whole context module, and fc6 together with fc7. The
    layers to reinitialize are those that this stage has.
    """
    sources = resolve_weights(weights, shapes, config.init_key).sources
    lacking = [f"*/{layer}" for layer in model.front_end.own_layers]
    for part in (("context/",), _HEAD):
        own = [n for n in shapes if any(selects(layer, n) for layer in part)]
        if own and not sources.keys() & set(own):
            lacking += [p for p in part if any(selects(p, n) for n in own)]
    reinit = [p for p in config.reinit if any(selects(p, n) for n in shapes)]
    return {"allow_missing": lacking, "reinit": reinit, "key": config.init_key}


# The images on which the paper evaluates the released networks.
_EVALUATED_ON = {
    "voc": DataConfig("voc"),
    "camvid": DataConfig("camvid", variant="original", val="test"),
    "kitti": DataConfig("kitti", val="test"),
    "cityscapes": DataConfig("cityscapes"),
}


def import_weights(
    path: str | Path,
    network: str,
    workdir: str | Path,
    *,
    data: DataConfig | None = None,
    width_multiplier: float = 1.0,
    head_channels: int | None = None,
    inputs: Inputs | None = None,
    key: str = "",
) -> Report:
    """Turn a file with the weights of a released network into the folder of a run.

    `load_checkpoint`, `--mode=eval`, `predict` and `submit` can read the folder.

    Args:
        path: a file for `read_weights`; the releases are `.caffemodel` files.
        network: `"dilation8_pascal_voc"`, `"dilation8_camvid"`, `"dilation7_kitti"` or
            `"dilation10_cityscapes"`.
        workdir: the folder, which is created, and must not contain a run.
        data: the images to evaluate on; by default the network's prepared data set.
        width_multiplier: of the front end, if it differs from the release's.
        head_channels: of the front end, if they differ from the release's.
        inputs: see `read_weights`; by default as the file says, or images minus the
            mean pixel of the data set.
        key: which network of the file to take, if it holds several that fit.

    Returns:
        A report on the file's layers, which is also written to `init.txt`.

    Raises:
        ValueError: if the network is unknown, the folder contains a run, or the weights
            cannot be read or do not fit. Nothing is written in this case.

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
        raise ValueError(f"network={network!r}: must be one of {', '.join(RELEASED)}")
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir}: contains a run; give another folder")
    build, dataset = RELEASED[network]
    model = build(width_multiplier=width_multiplier, head_channels=head_channels)
    context = model.context
    assert context is not None
    fields = ModelConfig(
        width_multiplier=width_multiplier,
        head_channels=head_channels,
        final_name=model.front_end.final_name,
        context_prefix=context.prefix,
        context_padding="entry" if context.padding == "entry" else "layer",
        upsample=model.upsample,
    )
    name = "released"
    stage = StageConfig(name, trains="all", context=context.layers, crop=(500, 500))
    config = Config(network, data or _EVALUATED_ON[dataset], fields, (stage,))
    check_config(config)
    spec = build_spec(config)
    if spec.num_classes != model.num_classes:
        raise ValueError(
            f"{spec.name} has {spec.num_classes} classes, {network} {model.num_classes}"
        )
    weights = read_weights(path, inputs)
    shapes = param_shapes(model)
    if resolve_weights(weights, flat_shapes(shapes), key).inputs is None:
        weights = dataclasses.replace(weights, inputs=Inputs(spec.mean))
    params, report = assign_weights(weights, model, shapes, mean=spec.mean, key=key)
    forget(workdir, name)  # an import that was killed may have left another network
    checkpoints = Checkpoints(workdir, name)
    checkpoints.save(TrainState(jnp.zeros((), jnp.int32), params, {"none": ()}))
    checkpoints.close()
    write_text(workdir / "init.txt", f"{report}\n")
    write_text(workdir / "spec.json", to_json(spec))
    write_text(workdir / "config.json", to_json(config))
    return report
