"""Recipes that more than one experiment trains."""

import dataclasses

from dilax.input import Augmentation
from dilax.models import BASIC, LARGE, VGG16_SLIM_HEAD, undilated
from dilax.training.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)


def slim_adam(learning_rate: float, warmup: int = 50) -> OptimizerConfig:
    """Adam with warm-up and cosine decay, which trains slim networks from scratch."""
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


def voc_paper() -> Config:
    """VOC at full width (§4, §5); steps of context and joint, not given, are ours."""
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
            StageConfig(
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
            ),
        ),
        needs_init=True,
    )
