"""KITTI with the labels of Ros et al. (Yu & Koltun 2016, Appendix A.2, Table 6).

    dilax data prepare kitti --from KITTI_SEMANTIC
    python experiments/kitti.py --config=small --workdir=runs/kitti
    python experiments/kitti.py --config=paper --config.init=vgg16 --workdir=runs/paper

small  For machines without a GPU: VGG-16 with an eighth of the channels at half
       resolution, from random weights.
paper  A.2 at full width: front end, 10K steps, then joint training with the seven-layer
       context module (Dilation7), 20K steps. Table 6 reports 59.2 mean IoU on the 46
       test images. Starts from ImageNet weights (--config.init=vgg16).

As in the paper, 100 images are used for training and the other 46 for testing; there is
no validation split.
"""

from dilax.cli import run
from dilax.data import Augmentation
from dilax.models import KITTI, VGG16_SLIM_HEAD
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
    """KITTI at half resolution with VGG-16 ÷ 8, from random weights."""
    return from_scratch(
        "small",
        DataConfig(
            "kitti",
            val="test",  # there is no other split with labels
            scale=0.5,  # a quarter of the time per image
            class_weight_power=0.5,  # mean IoU counts rare classes as much as others
        ),
        ModelConfig(
            layers=VGG16_SLIM_HEAD,  # fc6 is 3×3, not 7×7: a fifth of the arithmetic
            width_multiplier=1 / 8,
            head_channels=128,
            padding="same",  # otherwise small crops would be mostly margin
            upsample=True,  # a loss at every pixel, for thin objects
        ),
        crop=(176, 320),
        augmentation=Augmentation(scales=(0.75, 1.5), colour=0.2),
        front_end=Schedule(steps=3000, batch_size=4, learning_rate=1.5e-3),
        context=Schedule(steps=600, batch_size=8, learning_rate=2e-3),
        joint=Schedule(steps=800, batch_size=4, learning_rate=3e-4),
    )


def paper() -> Config:
    """A.2 at full width."""
    optimizer = OptimizerConfig(learning_rate=1e-4, momentum=0.99)
    front_end = StageConfig(
        "front_end",
        trains="front_end",
        steps=10_000,
        batch_size=8,
        crop=(628, 628),
        optimizer=optimizer,
        evaluate_every=2500,
        checkpoint_every=1000,
    )
    joint = StageConfig(
        "joint",
        trains="all",
        start="front_end",
        context=KITTI,
        steps=20_000,
        batch_size=1,
        crop=(900, 900),
        optimizer=OptimizerConfig(learning_rate=1e-5, momentum=0.99),
        evaluate_every=5000,
        checkpoint_every=1000,
    )
    return Config(
        name="paper",
        data=DataConfig("kitti", val="test"),
        model=ModelConfig(),
        stages=(front_end, joint),
        needs_init=True,
    )


if __name__ == "__main__":
    run({"small": small, "paper": paper}, __doc__)
