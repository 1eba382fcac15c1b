"""Where a run's parameters come from: a file of weights, or another run's folder."""

import functools
from pathlib import Path

import numpy as np
from flax import traverse_util

from dilax.datasets import DatasetSpec
from dilax.models import DilatedNet, param_shapes
from dilax.training.checkpoint import load_checkpoint
from dilax.training.config import Config, build_model
from dilax.training.structured import Params
from dilax.weights import (
    Inputs,
    Report,
    Stored,
    Weights,
    check_weights,
    chosen,
    flat_shapes,
    matches_layer,
    place_weights,
    read_weights,
    sources,
)


def check_init(config: Config) -> None:
    """Refuses a recipe that is meant to start from weights, without any.

    Raises:
        ValueError: saying where the weights are to be had, and how to go without.
    """
    if config.needs_init and config.init == "" and config.model.blocks:
        raise ValueError(
            f"--config.init: {config.name!r} starts from a ResNet trained on ImageNet. "
            "Give its file, --config.init=FILE, with the stem of --config.model.stem: "
            "resnet101-63fe2227.pth from download.pytorch.org/models has "
            "((7,64,2),). --config.init=none trains from random weights"
        )
    if config.needs_init and config.init == "":
        raise ValueError(
            f"--config.init: {config.name!r} starts from VGG-16 trained on ImageNet. "
            "Give its file, --config.init=FILE: VGG_ILSVRC_16_layers.caffemodel from "
            "robots.ox.ac.uk/~vgg, vgg16-397923af.pth from download.pytorch.org/models,"
            " or vgg16_weights_tf_dim_ordering_tf_kernels.h5 from storage.googleapis."
            "com/tensorflow/keras-applications/vgg16. --config.init=none trains from "
            "random weights"
        )
    if config.reset and not config.init:
        raise ValueError(
            f"--config.reset={config.reset}: there is no --config.init to reset"
        )


def params_from_init(
    config: Config, spec: DatasetSpec, model: DilatedNet, params: Params
) -> tuple[Params, Report]:
    """A stage's parameters from `config.init`.

    `final` may be missing there, and so may the context module as a whole: training
    them is what the run is for. A mean pixel that differs from the data set's goes into
    the first layer's bias.

    Args:
        config: says what to read, and what to leave out.
        spec: of the data set that will be trained on.
        model: of the stage.
        params: its initialisation, which layers keep that are reset or missing.

    Raises:
        ValueError: as `place_weights`.
    """
    weights = _read(config)
    names = list(flat_shapes(params))
    return place_weights(
        weights,
        model,
        params,
        allow_missing=_may_lack(weights, model, names),
        reset=_reset(config, names),
        mean=spec.mean,
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
                reset=_reset(config, list(shapes)),
            )
    chosen(config.reset, everything, "--config.reset")


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
    """The network's own layers, and the context module if the file has none of it."""
    own = [f"*/{layer}" for layer in model.front_end.own_layers]
    context = [name for name in names if name.startswith("context/")]
    whole = context and not sources(weights, context)
    return (*own, "context/") if whole else tuple(own)


def _reset(config: Config, names: list[str]) -> tuple[str, ...]:
    """The layers to reset that this stage has."""
    found = (p for p in config.reset if any(matches_layer(p, n) for n in names))
    return tuple(found)
