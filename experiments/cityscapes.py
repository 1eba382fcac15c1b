"""Cityscapes (Yu & Koltun 2016, Appendix A.3, Tables 7 and 8).

    dilax data prepare cityscapes --from CITYSCAPES
    python experiments/cityscapes.py --config=small --workdir=runs/cityscapes
    python experiments/cityscapes.py --config=paper --config.init=vgg16 \\
        --workdir=runs/paper
    dilax submit --workdir=runs/paper --split=test

small  For machines without a GPU: VGG-16 with an eighth of the channels at a quarter of
       the resolution, from random weights.
paper  A.3 at full width in three stages: front end, 40K steps on crops; context module,
       24K steps, each on the maps of a hundred whole images, computed one at a time;
       joint training, 60K steps on halves of images. In the paper, Dilation10 reaches
       68.7 mean IoU on the validation images and 67.1 on the test server. Starts from
       ImageNet weights (--config.init=vgg16).
"""

from dilax.cli import run
from dilax.data import Augmentation
from dilax.models import CITYSCAPES, VGG16_SLIM_HEAD
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Schedule,
    StageConfig,
    from_scratch,
)


def small() -> Config:
    """A quarter of the resolution, VGG-16 ÷ 8, from random weights."""
    return from_scratch(
        "small",
        DataConfig(
            "cityscapes",
            scale=0.25,  # 512×256, a sixteenth of the time per image
            class_weight_power=0.5,  # mean IoU counts rare classes as much as others
        ),
        ModelConfig(
            layers=VGG16_SLIM_HEAD,  # fc6 is 3×3, not 7×7: a fifth of the arithmetic
            width_multiplier=1 / 8,
            head_channels=128,
            padding="same",  # otherwise small crops would be mostly margin
            upsample=True,  # a loss at every pixel, for thin objects
        ),
        crop=(240, 320),
        augmentation=Augmentation(scales=(0.75, 1.5), colour=0.2),
        front_end=Schedule(steps=6000, batch_size=4, learning_rate=1.5e-3),
        context=Schedule(steps=800, batch_size=8, learning_rate=2e-3),
        joint=Schedule(steps=1500, batch_size=4, learning_rate=3e-4),
    )


def paper() -> Config:
    """A.3 at full width."""
    front_end = StageConfig(
        "front_end",
        trains="front_end",
        steps=40_000,
        batch_size=8,
        crop=(628, 628),
        optimizer=OptimizerConfig(learning_rate=1e-4, momentum=0.99),
        evaluate_every=10_000,
        checkpoint_every=1000,
    )
    context = StageConfig(
        "context",
        trains="context",
        inputs="maps",
        start="front_end",
        context=CITYSCAPES,
        steps=24_000,
        batch_size=100,
        accumulate=100,
        crop=(1024, 2048),
        optimizer=OptimizerConfig(learning_rate=1e-4, momentum=0.99),
        evaluate_every=4000,
        checkpoint_every=500,
    )
    joint = StageConfig(
        "joint",
        trains="all",
        start="context",
        context=CITYSCAPES,
        edge_crops=True,
        steps=60_000,
        batch_size=1,
        crop=(1396, 1396),
        optimizer=OptimizerConfig(learning_rate=1e-5, momentum=0.99),
        evaluate_every=10_000,
        checkpoint_every=1000,
    )
    return Config(
        name="paper",
        data=DataConfig("cityscapes"),
        model=ModelConfig(upsample=True),
        stages=(front_end, context, joint),
        needs_init=True,
    )


if __name__ == "__main__":
    run({"small": small, "paper": paper}, __doc__)
