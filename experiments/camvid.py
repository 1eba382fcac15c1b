"""CamVid (Yu & Koltun 2016, Appendix A.1, Table 5).

    python -m dilax.datasets prepare camvid --from CamVid
    python experiments/camvid.py --config=small --workdir=runs/camvid
    python experiments/camvid.py --config=paper --config.init=VGG16 --workdir=runs/paper
    python experiments/camvid.py --mode=eval --workdir=runs/camvid --which=best

small   On a machine without a GPU: VGG-16 with an eighth of the channels at half
        resolution, from scratch; then Basic context and its undilated control on the
        front end's maps, and both modules jointly. On the public 480×360 images.
paper   A.1 at full width: front end 20K steps, then joint. Table 5 reports 65.3 mean
        IoU on the 233 test images (--split=test). Starts from VGG-16 trained on
        ImageNet, --config.init=FILE. On the original frames, downsampled to 640×480
        (--variant=original when preparing).

The public validation images lie within a drive that is also trained on, so accuracy on
them flatters. --config.data.train=train_drives --config.data.val=val_drives keeps the
drives apart.
"""

from dilax.launch import run
from dilax.models import BASIC
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    slim,
)


def small() -> Config:
    """Half resolution, VGG-16 ÷ 8, from scratch."""
    data = DataConfig("camvid", scale=0.5, class_weight_power=0.5)
    return slim(data, crop=(176, 240), steps=(6000, 800, 1500), evaluate_every=2000)


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
        data=DataConfig("camvid", "original"),
        model=ModelConfig(),
        stages=(front_end, joint),
        needs_init=True,
    )


if __name__ == "__main__":
    run({"small": small, "paper": paper}, __doc__)
