"""Microsoft COCO with VOC's classes (Yu & Koltun 2016, §5, Tables 3 and 4).

    dilax data prepare coco --from COCO
    python experiments/coco.py --config=small --workdir=runs/coco
    python experiments/coco.py --config=paper --config.init=vgg16 --workdir=runs/paper

small  For machines without a GPU: VGG-16 with an eighth of the channels at half
       resolution, trained and evaluated on COCO alone.
paper  §5 at full width: front end, 140K steps on VOC + SBD and COCO together, then 50K
       steps on VOC + SBD alone; Large context on its maps; joint training. Table 3
       reports 69.8 mean IoU on VOC's validation images for the front end and 72.1 with
       the Large module. Starts from ImageNet weights (--config.init=vgg16). VOC must be
       prepared, too. The paper does not give the steps of context and joint training,
       so we chose them.
"""

from dilax.cli import run
from dilax.data import Augmentation
from dilax.models import VGG16_SLIM_HEAD
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Schedule,
    StageConfig,
    from_scratch,
)
from experiments import voc


def small() -> Config:
    """COCO at half resolution with VGG-16 ÷ 8, from random weights."""
    return from_scratch(
        "small",
        DataConfig(
            "coco",
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
        crop=(240, 240),
        augmentation=Augmentation(scales=(0.75, 1.5), colour=0.2),
        front_end=Schedule(steps=6000, batch_size=4, learning_rate=1.5e-3),
        context=Schedule(steps=800, batch_size=8, learning_rate=2e-3),
        joint=Schedule(steps=1500, batch_size=4, learning_rate=3e-4),
    )


def paper() -> Config:
    """§5 at full width."""
    config = voc.paper()
    config.data.extra = "coco"
    mixed = StageConfig(
        "mixed",
        trains="front_end",
        extra=True,
        steps=140_000,
        batch_size=14,
        crop=(500, 500),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, momentum=0.9, milestones=((100_000, 0.1),)
        ),
        evaluate_every=10_000,
        checkpoint_every=1000,
    )
    front_end, *after = config.stages
    front_end.start, front_end.steps = "mixed", 50_000
    front_end.optimizer.learning_rate = 1e-5
    config.stages = (mixed, front_end, *after)
    return config


if __name__ == "__main__":
    run({"small": small, "paper": paper}, __doc__)
