"""Recipes that more than one experiment trains."""

import dataclasses
from typing import Any

from dilax.data import Augmentation
from dilax.models import BASIC, LARGE, VGG16_SLIM_HEAD, Layer, undilated
from dilax.training.config import (
    Config,
    CRFConfig,
    DataConfig,
    OptimizerConfig,
    StageConfig,
)
from dilax.training.network import ModelConfig

# Bandwidths of Zheng et al. 2015: θ_γ, θ_α and θ_β.
CRF_RNN = {
    "spatial_sigma": 3.0,
    "bilateral_sigma_xy": 160.0,
    "bilateral_sigma_rgb": 3.0,
}


# Sees 30 px of the image; its cells stand 8 px apart.
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


def slim_adam(learning_rate: float, warmup: int = 50) -> OptimizerConfig:
    """Adam with warm-up and cosine decay, which trains slim networks from scratch.

    Example:
        >>> slim_adam(1e-3).schedule
        'cosine'
    """
    return OptimizerConfig(
        "adam",
        learning_rate,
        beta2=0.99,
        weight_decay=1e-4,
        bias_multiplier=1.0,
        schedule="cosine",
        warmup=warmup,
    )


def slim(
    data: DataConfig,
    crop: tuple[int, int],
    steps: tuple[int, int, int],
    evaluate_every: int = 0,
) -> Config:
    """VGG-16 with an eighth of the channels, from scratch, on a machine without a GPU.

    The front end; Basic context on its maps, and the same module undilated as a
    control; both modules jointly.

    Args:
        data: the images; classes are weighed by their frequency unless it says so.
        crop: (height, width) in pixels of the network's input, multiples of 8.
        steps: of the front end, of each context stage, of the joint stage.
        evaluate_every: steps of the front end between evaluations; 0 never.

    Example:
        >>> config = slim(DataConfig("scenes"), crop=(240, 240), steps=(2500, 600, 500))
        >>> [stage.name for stage in config.stages]
        ['front_end', 'context', 'control', 'joint']
    """
    images = Augmentation(scales=(0.75, 1.5), colour=0.2)
    front_end = StageConfig(
        "front_end",
        "front_end",
        steps=steps[0],
        batch_size=4,
        crop=crop,
        optimizer=slim_adam(1.5e-3),
        augmentation=images,
        evaluate_every=evaluate_every,
    )
    context = StageConfig(
        "context",
        "context",
        "maps",
        start="front_end",
        context=BASIC,
        steps=steps[1],
        batch_size=8,
        crop=crop,
        optimizer=slim_adam(2e-3),
        evaluate_every=steps[1] // 2 if evaluate_every else 0,
    )
    control = dataclasses.replace(
        context, name="control", context=undilated(context.context)
    )
    joint = dataclasses.replace(
        front_end,
        name="joint",
        trains="all",
        start="context",
        context=BASIC,
        steps=steps[2],
        optimizer=slim_adam(3e-4),
        evaluate_every=0,
    )
    return Config(
        name="small",
        data=data,
        model=ModelConfig(
            layers=VGG16_SLIM_HEAD,
            width_multiplier=0.125,
            head_channels=128,
            padding="same",
            upsample=True,
        ),
        stages=(front_end, context, control, joint),
        eval_batch_size=2,
    )


def quickstart() -> Config:
    """Embedded scenes: what dilation is for, in minutes.

    Example:
        >>> {stage.name: stage.steps for stage in quickstart().stages}
        {'front_end': 250, 'context': 500, 'control': 500, 'joint': 100}
    """
    context = StageConfig(
        "context",
        "context",
        "maps",
        start="front_end",
        context=BASIC,
        steps=500,
        batch_size=16,
        crop=(256, 256),
        optimizer=slim_adam(5e-3),
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
                "front_end",
                steps=250,
                crop=(278, 278),
                optimizer=slim_adam(2e-3),
                checkpoint_every=150,
            ),
            context,
            dataclasses.replace(
                context, name="control", context=undilated(context.context)
            ),
            StageConfig(
                "joint",
                "all",
                start="context",
                context=BASIC,
                steps=100,
                crop=(278, 278),
                optimizer=slim_adam(5e-4),
                checkpoint_every=50,
            ),
        ),
        eval_batch_size=8,
    )


def with_crfs(
    network: StageConfig, dense: CRFConfig, rnn: StageConfig
) -> tuple[StageConfig, StageConfig]:
    """The two stages that follow a network's: a dense CRF, and a CRF-RNN (§5).

    Args:
        network: the stage whose network they stand on; they are named after it.
        dense: the dense CRF.
        rnn: steps, crops, optimizer and CRF of the other.

    Example:
        >>> stages = with_crfs(quickstart().stage("joint"), CRFConfig(), voc_rnn())
        >>> [stage.name for stage in stages]
        ['joint_crf', 'joint_crfrnn']
    """
    stands: Any = {"trains": "crf", "start": network.name, "context": network.context}
    return (
        StageConfig(f"{network.name}_crf", **stands, crf=dense),
        dataclasses.replace(rnn, name=f"{network.name}_crfrnn", **stands),
    )


def structured(
    config: Config, dense: CRFConfig, rnn: StageConfig, controls: bool = False
) -> Config:
    """The nine stages of Table 3, from a recipe that has some of them.

    The front end; a Basic and a Large context module, as the recipe trains its first;
    and each of the three with a dense CRF and with a CRF-RNN besides.

    Args:
        config: a recipe with a front end and a context module; it is left as it is.
            What comes before the front end stays, what follows the first context module
            goes.
        dense: the dense CRFs.
        rnn: steps, crops, optimizer and CRF of the CRF-RNNs.
        controls: both modules without dilation, too: fifteen stages.

    Example:
        >>> config = structured(quickstart(), CRFConfig(), voc_rnn())
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
    """A stage that trains a CRF-RNN on a network, for `with_crfs` and `structured`.

    Adam with cosine decay: the loss is a mean over pixels, so ordinary rates work.

    Args:
        steps: of the stage.
        batch_size: crops of a step.
        crop: (height, width) in pixels of the network's input.
        learning_rate: of Adam.
        **fields: of the stage's `CRFConfig`.

    Example:
        >>> rnn_stage(40, 2, (278, 278), bilateral_sigma_xy=30.0).crf.bilateral_sigma_xy
        30.0
    """
    return StageConfig(
        "crfrnn",
        "crf",
        steps=steps,
        batch_size=batch_size,
        crop=crop,
        optimizer=slim_adam(learning_rate, warmup=steps // 10),
        checkpoint_every=max(1, steps // 5),
        crf=CRFConfig("rnn", **{**CRF_RNN, **fields}),
    )


def voc_paper() -> Config:
    """VOC at full width (§4, §5); steps of all but the front end are ours.

    Example:
        >>> voc_paper().stage("joint").optimizer.learning_rate
        1e-05
    """
    joint = StageConfig(
        "joint",
        "all",
        start="context",
        context=LARGE,
        steps=20_000,
        batch_size=14,
        crop=(500, 500),
        optimizer=OptimizerConfig(learning_rate=1e-5, momentum=0.9),
        evaluate_every=10_000,
        checkpoint_every=1000,
    )
    return Config(
        name="paper",
        data=DataConfig("voc", train="train_aug"),
        model=ModelConfig(
            final_name="fc-final", context_prefix="ct_", context_padding="entry"
        ),
        stages=(
            StageConfig(
                "front_end",
                "front_end",
                steps=60_000,
                batch_size=14,
                crop=(500, 500),
                optimizer=OptimizerConfig(learning_rate=1e-3, momentum=0.9),
                evaluate_every=10_000,
                checkpoint_every=1000,
            ),
            StageConfig(
                "context",
                "context",
                "maps",
                start="front_end",
                context=LARGE,
                steps=40_000,
                batch_size=60,
                crop=(528, 528),
                optimizer=OptimizerConfig(learning_rate=1e-3, momentum=0.9),
                evaluate_every=5000,
                checkpoint_every=1000,
            ),
            joint,
            *with_crfs(joint, CRFConfig(), voc_rnn()),
        ),
        needs_init=True,
    )


def voc_rnn() -> StageConfig:
    """A CRF-RNN of VOC at full width: whole images, one a step; the steps are ours.

    Example:
        >>> voc_rnn().crop
        (884, 884)
    """
    return rnn_stage(5000, batch_size=1, crop=(884, 884), learning_rate=1e-3)
