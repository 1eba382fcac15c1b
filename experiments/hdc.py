"""Hybrid dilation and dense upsampling (Wang et al. 2018, §3, Tables 1 to 3).

    python experiments/hdc.py --workdir=runs/hdc --seeds=0,1,2
    dilax data prepare camvid --from CamVid
    python experiments/hdc.py --config=camvid --workdir=runs/hdc_camvid --seeds=0,1,2
    python experiments/hdc.py --config=cityscapes --workdir=runs/hdc_cityscapes
    python experiments/hdc.py --config=paper --config.init=resnet101 --workdir=DIR

Four networks that differ only in the dilation rates of the last two groups of blocks
(2 and 4, or HDC's) and in the last layer (bilinear upsampling, or DUC). Each is a stage
and a column of the table. All train from random weights with batch normalization.

scenes      Rendered scenes; needs no data.
camvid      CamVid at half resolution.
cityscapes  Cityscapes at a quarter of its resolution.
paper       The published network on Cityscapes: ResNet-101 with HDC, and DUC with one
            score per 2 pixels; 79.1 mean IoU on the test set at a single scale, 80.1 at
            several. Starts from a ResNet-101 trained on ImageNet with the deep stem
            (--config.init=FILE); for torchvision's, --config.init=resnet101
            --config.model.stem=((7,64,2),). We chose the batch size, crop, rates, and
            steps where the paper does not give them.

The networks of the first three have the depth of ResNet-50 and an eighth of its
channels (scenes: a sixteenth). dilax receptive-field --run=DIR --stage=hdc shows which
pixels their outputs depend on.
"""

import dataclasses

from dilax.cli import run
from dilax.data import Augmentation
from dilax.models import HDC50, HDC101, RESNET50, resnet_blocks
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    adam,
)

RATE_2 = resnet_blocks(RESNET50, res4=(2,), res5=(4,))


def ablation(
    data: DataConfig, crop: tuple[int, int], steps: int, width: float = 0.125
) -> Config:
    """Rate 2 against HDC, bilinear upsampling against DUC, in one run.

    Args:
        data: the images.
        crop: (height, width) in pixels of the network's input, multiples of 8.
        steps: of each network.
        width: multiple of ResNet-50's channels.
    """
    model = ModelConfig(
        width_multiplier=width,
        padding="same",
        final_rates=(1, 2, 3, 4),
        upsample=True,
    )
    stage = StageConfig(
        "rate_2",
        trains="all",
        steps=steps,
        batch_size=4,
        crop=crop,
        optimizer=adam(3e-3),
        augmentation=Augmentation(scales=(0.75, 1.5), colour=0.2),
        checkpoint_every=max(1, steps // 4),
    )
    networks = {
        "rate_2": dataclasses.replace(model, blocks=RATE_2),
        "hdc": dataclasses.replace(model, blocks=HDC50),
        "rate_2_duc": dataclasses.replace(model, blocks=RATE_2, duc=4),
        "hdc_duc": dataclasses.replace(model, blocks=HDC50, duc=4),
    }
    return Config(
        name="ablation",
        data=data,
        model=networks["hdc_duc"],
        stages=tuple(
            dataclasses.replace(stage, name=name, model=network)
            for name, network in networks.items()
        ),
    )


def scenes() -> Config:
    """Rendered scenes, at full resolution."""
    config = ablation(DataConfig("scenes"), (256, 256), 500, width=1 / 16)
    for stage in config.stages:
        stage.augmentation = Augmentation()
    return config


def camvid() -> Config:
    """CamVid at half resolution."""
    data = DataConfig("camvid", scale=0.5, class_weight_power=0.5)
    return ablation(data, (176, 240), 3000)


def cityscapes() -> Config:
    """Cityscapes at a quarter of its resolution."""
    data = DataConfig("cityscapes", scale=0.25, class_weight_power=0.5)
    return ablation(data, (240, 320), 3000)


def paper() -> Config:
    """ResNet-101 with HDC and DUC; batch statistics stay those of ImageNet."""
    stage = StageConfig(
        "hdc_duc",
        trains="all",
        steps=40_000,
        batch_size=8,
        crop=(800, 800),
        optimizer=OptimizerConfig(learning_rate=5e-4, schedule="poly"),
        augmentation=Augmentation(scales=(0.5, 1.5)),
        evaluate_every=5000,
        checkpoint_every=1000,
        remat=True,
    )
    return Config(
        name="paper",
        data=DataConfig("cityscapes"),
        model=ModelConfig(
            blocks=HDC101,
            padding="same",
            batch_norm="frozen",
            final_rates=(6, 12, 18, 24),
            duc=4,
        ),
        stages=(stage,),
        needs_init=True,
    )


CONFIGURATIONS = {
    "scenes": scenes,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "paper": paper,
}

if __name__ == "__main__":
    run(CONFIGURATIONS, __doc__)
