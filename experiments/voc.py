"""Pascal VOC 2012 (Yu & Koltun 2016, §4 and §5), and the quickstart.

    python experiments/voc.py --config=quickstart --workdir=runs/quickstart
    dilax data prepare voc --from VOC
    python experiments/voc.py --config=small --workdir=runs/voc
    python experiments/voc.py --config=paper --config.init=vgg16 --workdir=runs/paper
    dilax predict --workdir=runs/voc --input=photo.jpg
    dilax submit --workdir=runs/paper --split=test

quickstart  Rendered scenes, a tiny network, all stages, and the undilated control: the
            experiment of Table 3 in a few minutes on two cores. Needs no data.
small       VOC on machines without a GPU: VGG-16 with an eighth of the channels at half
            resolution, from random weights. Shows that everything runs; such a small
            network is not accurate with so few images.
vgg         From trained convolutions at full width, for machines without a GPU: VGG-16
            with a small head (fc6 3×3, 512 channels) at half resolution, then Basic
            context, its undilated control, and joint training. Downloads Keras's file
            of the convolutions once; --config.init=FILE uses another file.
paper       The paper's recipe at full width: VGG-16 front end, 60K steps on VOC + SBD
            (split train_aug); Large context on stored maps; joint training. Table 3
            reports 69.8 mean IoU for the front end and 72.1 with the Large module, with
            COCO images as well. Starts from ImageNet weights (--config.init=vgg16). The
            release divides the learning rate by ten after 100K steps, which no stage
            here reaches.

experiments/coco.py adds COCO's images, as in §5.
"""

from dilax.cli import run
from dilax.data import Augmentation
from dilax.models import LARGE, VGG16_SLIM_HEAD
from dilax.training import (
    Config,
    CRFConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Schedule,
    StageConfig,
    fine_tuned,
    from_scratch,
    quickstart,
    rnn_stage,
    with_crfs,
)


def small() -> Config:
    """VOC at half resolution with VGG-16 ÷ 8, from random weights."""
    return from_scratch(
        "small",
        DataConfig(
            "voc",
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
        front_end=Schedule(steps=2500, batch_size=4, learning_rate=1.5e-3),
        context=Schedule(steps=600, batch_size=8, learning_rate=2e-3),
        joint=Schedule(steps=500, batch_size=4, learning_rate=3e-4),
    )


def vgg() -> Config:
    """VGG-16's trained convolutions at full width, whole images at half resolution."""
    data = DataConfig(
        "voc",
        scale=0.5,  # a quarter of the time per image
        class_weight_power=0.5,  # mean IoU counts rare classes as much as others
    )
    config = fine_tuned(data, crop=(192, 256), steps=(1000, 200, 150))
    config.name = "vgg"
    config.model.duc = 1  # with 21 classes, context on finer cells takes too long
    config.stages[0].batch_size = 4
    for stage in config.stages[1:3]:
        stage.optimizer.learning_rate = 3e-4  # at 2e-3, 311 images are soon overfitted
    return config


def paper() -> Config:
    """§4 and §5 at full width; we chose the steps of all stages but the first."""
    front_end = StageConfig(
        "front_end",
        trains="front_end",
        steps=60_000,
        batch_size=14,
        crop=(500, 500),  # as in the release
        optimizer=OptimizerConfig(learning_rate=1e-3, momentum=0.9),  # §4
        evaluate_every=10_000,
        checkpoint_every=1000,
    )
    context = StageConfig(
        "context",
        trains="context",
        inputs="maps",
        start="front_end",
        context=LARGE,
        steps=40_000,
        batch_size=60,  # as in the release, for Basic
        crop=(528, 528),  # maps of 66×66 cells
        optimizer=OptimizerConfig(learning_rate=1e-3, momentum=0.9),  # §5
        evaluate_every=5000,
        checkpoint_every=1000,
    )
    joint = StageConfig(
        "joint",
        trains="all",
        start="context",
        context=LARGE,
        steps=20_000,
        batch_size=14,
        crop=(500, 500),
        optimizer=OptimizerConfig(
            learning_rate=1e-5, momentum=0.9
        ),  # as in the release
        evaluate_every=10_000,
        checkpoint_every=1000,
    )
    return Config(
        name="paper",
        data=DataConfig("voc", train="train_aug"),  # VOC train and SBD
        model=ModelConfig(  # names and padding of the released network
            final_name="fc-final", context_prefix="ct_", context_padding="entry"
        ),
        stages=(front_end, context, joint, *with_crfs(joint, CRFConfig(), rnn())),
        needs_init=True,
    )


def rnn() -> StageConfig:
    """A CRF-RNN at full width: one whole image per step; we chose the steps."""
    return rnn_stage(5000, batch_size=1, crop=(884, 884), learning_rate=1e-3)


if __name__ == "__main__":
    recipes = (quickstart, small, vgg, paper)
    run({recipe.__name__: recipe for recipe in recipes}, __doc__)
