"""Recipes that several experiments share."""

import dataclasses
from typing import Any, NamedTuple

from dilax.data import Augmentation, Reading
from dilax.models import BASIC, LARGE, VGG16, Layer, undilated
from dilax.training.config import (
    Config,
    CRFConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)

# Bandwidths of Zheng et al. 2015: θ_γ, θ_α, and θ_β.
CRF_RNN = {
    "spatial_sigma": 3.0,
    "bilateral_sigma_xy": 160.0,
    "bilateral_sigma_rgb": 3.0,
}


# Its receptive field is 30 px, and its cells are 8 px apart.
TINY = (
    Layer("conv1_1", 3, 16),
    Layer("pool1", 2),
    Layer("conv2_1", 3, 32),
    Layer("pool2", 2),
    Layer("conv3_1", 3, 48),
    Layer("conv3_2", 3, 48),
    Layer("pool3", 2),
    Layer("fc4", 1, 64),
)


class Schedule(NamedTuple):
    """The steps, batch size, and learning rate of a stage.

    Attributes:
        steps: optimizer steps.
        batch_size: crops per step.
        learning_rate: of Adam, after the warm-up.
        evaluate_every: steps between evaluations during training; 0 never evaluates.

    Example:
        >>> Schedule(steps=600, batch_size=8, learning_rate=2e-3).steps
        600
    """

    steps: int
    batch_size: int
    learning_rate: float
    evaluate_every: int = 0


def adam(learning_rate: float, warmup: int = 50) -> OptimizerConfig:
    """Return Adam with warm-up and cosine decay, which trains slim networks.

    β2 = 0.99 adapts within the few thousand steps of such a run.

    Args:
        learning_rate: after the warm-up.
        warmup: steps of linear warm-up.

    Example:
        >>> adam(1e-3).schedule
        'cosine'
    """
    return OptimizerConfig(
        "adam",
        learning_rate=learning_rate,
        beta2=0.99,
        weight_decay=1e-4,
        bias_multiplier=1.0,
        schedule="cosine",
        warmup=warmup,
    )


def from_scratch(
    name: str,
    data: DataConfig,
    model: ModelConfig,
    *,
    crop: tuple[int, int],
    augmentation: Augmentation,
    front_end: Schedule,
    context: Schedule,
    joint: Schedule,
) -> Config:
    """Return the four stages in which small networks train from random weights.

    The front end; Basic context on its maps; the same module undilated, as a control;
    front end and context jointly.

    Args:
        name: of the configuration.
        data: the images.
        model: the network, apart from the context module.
        crop: (height, width) in pixels of the network's input, multiples of 8.
        augmentation: of images; maps are only mirrored.
        front_end: of the first stage.
        context: of the context module, and of its control.
        joint: of the last stage.

    Example:
        >>> short = Schedule(steps=500, batch_size=4, learning_rate=1e-3)
        >>> config = from_scratch(
        ...     "short",
        ...     DataConfig("scenes"),
        ...     ModelConfig(width_multiplier=0.125, padding="same"),
        ...     crop=(240, 240),
        ...     augmentation=Augmentation(),
        ...     front_end=short,
        ...     context=short,
        ...     joint=short,
        ... )
        >>> [stage.name for stage in config.stages]
        ['front_end', 'context', 'control', 'joint']
    """

    def stage(name: str, schedule: Schedule, **fields: Any) -> StageConfig:
        return StageConfig(
            name,
            steps=schedule.steps,
            batch_size=schedule.batch_size,
            crop=crop,
            optimizer=adam(schedule.learning_rate),
            evaluate_every=schedule.evaluate_every,
            **fields,
        )

    maps: Any = {"trains": "context", "inputs": "maps", "start": "front_end"}
    return Config(
        name=name,
        data=data,
        model=model,
        stages=(
            stage(
                "front_end", front_end, trains="front_end", augmentation=augmentation
            ),
            stage("context", context, context=BASIC, **maps),
            stage("control", context, context=undilated(BASIC), **maps),
            stage(
                "joint",
                joint,
                trains="all",
                start="context",
                context=BASIC,
                augmentation=augmentation,
            ),
        ),
        eval_batch_size=2,
    )


# VGG-16's convolutions with a head that need not start from trained weights. Its taps
# are 6 cells apart, half as far as the outer ones of the paper's 7×7 kernel, because
# crops of 240 px have only 30 cells.
VGG16_SMALL_HEAD = (
    *VGG16[:-2],
    Layer("fc6", 3, 512, dilation=6, dropout=0.25),
    Layer("fc7", 1, 512, dropout=0.25),
)


def fine_tuned(
    data: DataConfig, crop: tuple[int, int], steps: tuple[int, int, int]
) -> Config:
    """Return VGG-16 at full width from trained convolutions, for CPUs.

    The front end; Basic context on its maps of whole images; the same module undilated,
    as a control; front end and context jointly. fc6, fc7, and `final` are new and have
    eight times the learning rate of the trained layers; conv1 and conv2 are frozen,
    which saves two fifths of a step. There is one score per 4 pixels (`duc`), for thin
    objects. A step of two 240×320 crops takes about 1.5 s on one CPU core, and 0.9 GB.

    Args:
        data: the images.
        crop: (height, width) in pixels of the network's input, multiples of 8.
        steps: of the front end, of each context stage, of the joint stage.

    Example:
        >>> config = fine_tuned(DataConfig("camvid"), (240, 320), (2000, 600, 300))
        >>> config.init, config.reinit
        ('vgg16_keras', ('fc6', 'fc7'))
    """
    config = from_scratch(
        "fine_tuned",
        data,
        ModelConfig(layers=VGG16_SMALL_HEAD, duc=2, padding="same", upsample=True),
        crop=crop,
        augmentation=Augmentation(scales=(0.7, 1.5), colour=0.3),
        front_end=Schedule(steps[0], batch_size=2, learning_rate=1.5e-4),
        context=Schedule(steps[1], batch_size=4, learning_rate=2e-3),
        joint=Schedule(steps[2], batch_size=2, learning_rate=3e-5),
    )
    for stage in config.stages:
        stage.checkpoint_every = 100
    front_end, *_, joint = config.stages
    for stage, new in ((front_end, ("fc6", "fc7", "final")), (joint, ("context/",))):
        stage.ema, stage.optimizer.warmup = 0.998, 100
        stage.optimizer.lr_multipliers = (
            ("conv1", 0.0),
            ("conv2", 0.0),
            *((layer, 8.0) for layer in new),
        )
    config.eval_batch_size, config.reading = 1, Reading(cache="host")
    config.init, config.reinit = "vgg16_keras", ("fc6", "fc7")
    return config


def quickstart() -> Config:
    """Return the recipe that shows on rendered scenes, in minutes, what dilation does.

    Example:
        >>> {stage.name: stage.steps for stage in quickstart().stages}
        {'front_end': 250, 'context': 500, 'control': 500, 'joint': 100}
    """
    context = StageConfig(
        "context",
        trains="context",
        inputs="maps",
        start="front_end",
        context=BASIC,
        steps=500,
        batch_size=16,
        crop=(256, 256),
        optimizer=adam(5e-3),
        evaluate_every=250,
        checkpoint_every=250,
    )
    return Config(
        name="quickstart",
        data=DataConfig("scenes"),
        model=ModelConfig(layers=TINY),
        stages=(
            StageConfig(
                "front_end",
                trains="front_end",
                steps=250,
                crop=(278, 278),
                optimizer=adam(2e-3),
                checkpoint_every=150,
            ),
            context,
            dataclasses.replace(
                context, name="control", context=undilated(context.context)
            ),
            StageConfig(
                "joint",
                trains="all",
                start="context",
                context=BASIC,
                steps=100,
                crop=(278, 278),
                optimizer=adam(5e-4),
                checkpoint_every=50,
            ),
        ),
        eval_batch_size=8,
    )


def with_crfs(
    network: StageConfig, dense: CRFConfig, rnn: StageConfig
) -> tuple[StageConfig, StageConfig]:
    """Return two stages that follow a network's: a dense CRF, and a CRF-RNN (§5).

    Args:
        network: the stage whose network they refine; they are named after it.
        dense: the dense CRF.
        rnn: steps, crops, optimizer, and CRF of the CRF-RNN.

    Example:
        >>> rnn = rnn_stage(40, 2, (278, 278))
        >>> stages = with_crfs(quickstart().stage("joint"), CRFConfig(), rnn)
        >>> [stage.name for stage in stages]
        ['joint_crf', 'joint_crfrnn']
    """
    fields: Any = {"trains": "crf", "start": network.name, "context": network.context}
    return (
        StageConfig(f"{network.name}_crf", **fields, crf=dense),
        dataclasses.replace(rnn, name=f"{network.name}_crfrnn", **fields),
    )


def structured(
    config: Config, dense: CRFConfig, rnn: StageConfig, controls: bool = False
) -> Config:
    """Return the nine stages of Table 3, from a recipe that has some of them.

    The front end; a Basic and a Large context module, trained like the recipe's first
    context module; and each of the three with a dense CRF and with a CRF-RNN.

    Args:
        config: a recipe with a front end and a context module; it stays unchanged.
            Stages before the front end are kept, and stages after the first context
            module are dropped.
        dense: the dense CRFs.
        rnn: steps, crops, optimizer, and CRF of the CRF-RNNs.
        controls: add both modules without dilation: fifteen stages.

    Example:
        >>> rnn = rnn_stage(40, 2, (278, 278))
        >>> config = structured(quickstart(), CRFConfig(), rnn)
        >>> [stage.name for stage in config.stages][:4]
        ['front_end', 'front_end_crf', 'front_end_crfrnn', 'basic']
    """
    first = next(i for i, stage in enumerate(config.stages) if stage.context)
    *before, front_end = config.stages[:first]
    context = config.stages[first]
    tables = {"basic": BASIC, "large": LARGE}
    if controls:
        tables |= {f"{name}_control": undilated(t) for name, t in tables.items()}
    modules = (
        dataclasses.replace(context, name=name, context=table)
        for name, table in tables.items()
    )
    networks = (front_end, *modules)
    rows = (stage for n in networks for stage in (n, *with_crfs(n, dense, rnn)))
    return dataclasses.replace(config, stages=(*before, *rows))


def rnn_stage(
    steps: int,
    batch_size: int,
    crop: tuple[int, int],
    *,
    learning_rate: float = 1e-2,
    **fields: Any,
) -> StageConfig:
    """Return a stage that trains a CRF-RNN, for `with_crfs` and `structured`.

    It uses Adam with cosine decay: the loss is a mean over pixels, so ordinary learning
    rates work.

    Args:
        steps: of the stage.
        batch_size: crops per step.
        crop: (height, width) in pixels of the network's input.
        learning_rate: of Adam.
        **fields: of the stage's `CRFConfig`.

    Example:
        >>> rnn_stage(40, 2, (278, 278), bilateral_sigma_xy=30.0).crf.bilateral_sigma_xy
        30.0
    """
    return StageConfig(
        "crfrnn",
        trains="crf",
        steps=steps,
        batch_size=batch_size,
        crop=crop,
        optimizer=adam(learning_rate, warmup=steps // 10),
        checkpoint_every=max(1, steps // 5),
        crf=CRFConfig("rnn", **{**CRF_RNN, **fields}),
    )
