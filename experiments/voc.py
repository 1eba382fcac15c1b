"""Pascal VOC 2012 (Yu & Koltun 2016, §4 and §5), and the quickstart.

    python experiments/voc.py --config=quickstart --workdir=runs/quickstart
    python -m dilax.datasets prepare voc --from VOC
    python experiments/voc.py --config=small --workdir=runs/voc
    python experiments/voc.py --config=paper --config.init=VGG16 --workdir=runs/paper
    python experiments/voc.py --mode=predict --workdir=runs/voc --input=photo.jpg
    python experiments/voc.py --mode=submit --workdir=runs/paper --split=test

quickstart  Embedded scenes, slim network, all stages and the undilated control: the
            experiment of Table 3 in some minutes on two cores. Needs no data.
small       VOC on a machine without a GPU: VGG-16 with an eighth of the channels at
            half resolution, from scratch. Shows that all runs; the accuracy of so small
            a network on few images is low.
paper       The paper's recipe at full width: VGG-16 front end 60K steps on VOC + SBD
            (split `train_aug`), Large context on stored maps, joint. Table 3 reports
            69.8 mean IoU for the front end and 72.1 with the Large module, with COCO
            images besides. Starts from VGG-16 trained on ImageNet, --config.init=FILE.
            The release divides the rate by ten after 100K steps, which no stage here
            reaches.

experiments/coco.py adds the images of COCO, as §5 does.
"""

import dataclasses

from dilax.launch import run
from dilax.models import BASIC, Layer, undilated
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    StageConfig,
    slim,
    slim_adam,
    voc_paper,
)

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


def quickstart() -> Config:
    """Embedded scenes: what dilation is for, in minutes."""
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


def small() -> Config:
    """VOC at half resolution with VGG-16 ÷ 8, from scratch."""
    data = DataConfig("voc", scale=0.5, class_weight_power=0.5)
    return slim(data, crop=(240, 240), steps=(2500, 600, 500))


paper = voc_paper

if __name__ == "__main__":
    run({"quickstart": quickstart, "small": small, "paper": paper}, __doc__)
