"""CamVid (Yu & Koltun 2016, Appendix A.1, Table 5).

    dilax data prepare camvid --from CamVid
    python experiments/camvid.py --config=small --workdir=runs/camvid
    python experiments/camvid.py --config=paper --config.init=vgg16 --workdir=runs/paper
    dilax eval --workdir=runs/camvid --stage=front_end --checkpoint=best

small    For machines without a GPU: VGG-16 with an eighth of the channels at half
         resolution, from random weights; Basic context and its undilated control on
         the front end's maps; joint training. On the public 480×360 images.
scratch  From random weights at full resolution: a small dilated residual network as the
         front end; Basic context and its undilated control on the maps of whole images;
         joint training.
street   The network of --weights=camvid, from random weights: a fast residual network
         with a score for every 2 pixels, for 16000 steps.
wide     scratch with twice the channels, whole images, and batches of 16, for a GPU.
vgg      From trained convolutions at full width, for machines without a GPU: VGG-16
         with a small head (fc6 3×3, 512 channels) at full resolution, then the stages
         of scratch. Downloads Keras's file of the convolutions once; --config.init=FILE
         uses another file.
paper    A.1 at full width: front end 20K steps, then joint training. Table 5 reports
         65.3 mean IoU on the 233 test images (--split=test). Starts from ImageNet
         weights (--config.init=vgg16). On the original frames, downsampled to 640×480
         (prepare with --variant=original).

The public validation images come from a drive that is also trained on, so accuracy on
them is optimistic. --config.data.train=train_drives --config.data.val=val_drives
separates the drives.
"""

from dilax.cli import run
from dilax.data import Augmentation, Reading
from dilax.models import BASIC, VGG16_SLIM_HEAD
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Schedule,
    StageConfig,
    fine_tuned,
    from_scratch,
)


def small() -> Config:
    """CamVid at half resolution with VGG-16 ÷ 8, from random weights."""
    return from_scratch(
        "small",
        DataConfig(
            "camvid",
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
        crop=(176, 240),
        augmentation=Augmentation(scales=(0.75, 1.5), colour=0.2),
        front_end=Schedule(
            6000, batch_size=4, learning_rate=1.5e-3, evaluate_every=2000
        ),
        context=Schedule(800, 8, learning_rate=2e-3, evaluate_every=400),
        joint=Schedule(steps=1500, batch_size=4, learning_rate=3e-4),
    )


def scratch() -> Config:
    """The best recipe found without ImageNet weights; camvid_log.md lists the others.

    Batch normalization lets a deep network train from random weights at a high learning
    rate. A quarter of DRN-D-22's channels, 1.0 M parameters, is feasible on two cores.
    """
    config = from_scratch(
        "scratch",
        DataConfig(
            "camvid",  # at full resolution, for poles and signs
            class_weight_power=0.5,  # mean IoU counts rare classes as much as others
        ),
        ModelConfig("drn_d_22", width_multiplier=1 / 4, upsample=True),
        crop=(240, 320),
        augmentation=Augmentation(scales=(0.6, 1.6), colour=0.3),  # for 367 images
        front_end=Schedule(8000, 4, learning_rate=3e-3, evaluate_every=2000),
        context=Schedule(1600, batch_size=2, learning_rate=2e-3),
        joint=Schedule(1500, batch_size=4, learning_rate=3e-4),
    )
    front_end, context, control, joint = config.stages
    front_end.optimizer.warmup = 200
    for stage in (front_end, joint):
        stage.ema = 0.999  # averages out the noise of small batches
        stage.checkpoint_every = 250
    for stage in (context, control):
        stage.crop = (360, 480)  # maps of whole images
    config.reading = Reading(cache="host")
    return config


def street() -> Config:
    """The network of `--weights=camvid`: `scratch`, but faster, wider, and longer."""
    config = scratch()
    config.name, config.stages = "street", config.stages[:1]
    config.model = ModelConfig("drn_light", duc=4, upsample=True)
    (front_end,) = config.stages
    front_end.steps, front_end.checkpoint_every = 16_000, 500
    return config


def wide() -> Config:
    """`scratch` with half of DRN-D-22's channels, 16 MB, for a GPU; not trained yet."""
    config = scratch()
    config.name, config.dtype = "wide", "bfloat16"
    config.reading.threads, config.eval_batch_size = 16, 8
    config.model.width_multiplier = 0.5
    for stage, steps in zip(config.stages, (12_000, 2000, 2000, 3000), strict=True):
        stage.steps, stage.crop, stage.checkpoint_every = steps, (360, 480), 500
        stage.batch_size = 16
    return config


def vgg() -> Config:
    """VGG-16's trained convolutions at full width; context sees whole images."""
    data = DataConfig(
        "camvid",
        class_weight_power=0.5,  # mean IoU counts rare classes as much as others
    )
    config = fine_tuned(data, crop=(240, 320), steps=(4000, 600, 400))
    config.name = "vgg"
    config.stages[0].evaluate_every = 1000
    for stage in config.stages[1:3]:
        stage.crop = (360, 480)
    return config


def paper() -> Config:
    """A.1 at full width; we chose the steps of joint training, which A.1 omits."""
    front_end = StageConfig(
        "front_end",
        trains="front_end",
        steps=20_000,
        batch_size=8,
        crop=(628, 628),
        optimizer=OptimizerConfig(learning_rate=1e-4, momentum=0.99),
        evaluate_every=5000,
        checkpoint_every=1000,
    )
    joint = StageConfig(
        "joint",
        trains="all",
        start="front_end",
        context=BASIC,
        steps=20_000,
        batch_size=1,
        crop=(852, 852),
        optimizer=OptimizerConfig(learning_rate=1e-5, momentum=0.9),
        evaluate_every=5000,
        checkpoint_every=1000,
    )
    return Config(
        name="paper",
        data=DataConfig("camvid", variant="original"),
        model=ModelConfig(),
        stages=(front_end, joint),
        needs_init=True,
    )


if __name__ == "__main__":
    recipes = (small, scratch, street, wide, vgg, paper)
    run({recipe.__name__: recipe for recipe in recipes}, __doc__)
