"""CamVid (Yu & Koltun 2016, Appendix A.1, Table 5).

    python experiments/camvid.py --config=small --data_dir=CamVid --workdir=runs/camvid
    python experiments/camvid.py --config=paper --data_dir=CamVid --workdir=runs/paper
    python experiments/camvid.py --mode=eval --workdir=runs/camvid --which=best

small   On a machine without a GPU: VGG-16 with an eighth of the channels at half
        resolution, from scratch; then Basic context and its undilated control on the
        front end's maps, and both modules jointly.
paper   A.1 at full width, 640×480: front end 20K steps, then joint. Table 5 reports
        65.3 mean IoU on the 233 test images from ImageNet weights; this configuration
        starts from random weights.

`data_dir` is the public layout at 480×360: `train/ trainannot/ val/ valannot/`, with
`train.txt` and `val.txt`. The public validation images lie within a drive that is also
trained on, so accuracy on them flatters.
"""

import dataclasses

from dilax.input import Augmentation
from dilax.launch import run
from dilax.models import BASIC, VGG16_SLIM_HEAD, undilated
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    slim_adam,
)


def small() -> Config:
    """Half resolution, VGG-16 ÷ 8, from scratch."""
    images = Augmentation(scales=(0.75, 1.5), colour=0.2)
    front_end = StageConfig(
        "front_end",
        "front_end",
        steps=6000,
        batch_size=4,
        crop=(176, 240),
        optimizer=slim_adam(1.5e-3),
        augmentation=images,
        evaluate_every=2000,
    )
    context = StageConfig(
        "context",
        "context",
        "maps",
        start="front_end",
        context=BASIC,
        steps=800,
        batch_size=8,
        crop=(184, 240),
        optimizer=slim_adam(2e-3),
        evaluate_every=400,
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
        steps=1500,
        optimizer=slim_adam(3e-4),
        evaluate_every=0,
    )
    return Config(
        name="small",
        data=DataConfig(layout="camvid", scale=0.5, class_weight_power=0.5),
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


def paper() -> Config:
    """A.1 at full width; the steps of joint training, not given, are ours."""
    front_end = StageConfig(
        "front_end",
        "front_end",
        steps=20_000,
        batch_size=8,
        crop=(628, 628),
        optimizer=OptimizerConfig(learning_rate=1e-4, momentum=0.99),
        evaluate_every=5000,
        checkpoint_every=1000,
    )
    joint = StageConfig(
        "joint",
        "all",
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
        data=DataConfig(layout="camvid", scale=4 / 3),
        model=ModelConfig(),
        stages=(front_end, joint),
    )


if __name__ == "__main__":
    run({"small": small, "paper": paper}, __doc__)
