"""DeepLab-LargeFOV on Pascal VOC with its authors' recipe (Chen et al. 2015).

    python experiments/deeplab.py --config.init=vgg16 --config.reinit=fc6,fc7 \\
        --workdir=runs/deeplab
    python experiments/tables.py --table=4 --mode=collect --runs=runs/deeplab,DIR \\
        --workdir=runs/table4

Tables 4, 5, and 6 of Yu & Koltun (2016) compare with this network. tables.py trains it
like the other networks of a table. This file has its authors' recipe at full width:
batches of 20 crops, 6K steps with a learning rate of 1e-3, divided by ten every 2K
steps, and ten times that rate for the last layer; then the dense CRF with its published
parameters. The recipe has not been trained to completion.

paper  Crops have 320 pixels, a multiple of 8, instead of 321. Starts from ImageNet
       weights (--config.init=vgg16). The authors initialize fc6 and fc7 with every
       second tap and a quarter of the channels of VGG-16's layers; here they start from
       random weights.
"""

from dilax.cli import run
from dilax.training import (
    Config,
    CRFConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)


def paper() -> Config:
    """The recipe of the paper and of the released solver."""
    optimizer = OptimizerConfig(
        learning_rate=1e-3,
        momentum=0.9,
        milestones=((2000, 0.1), (4000, 0.1)),
        lr_multipliers=(("final", 10.0),),
    )
    network = StageConfig(
        "front_end",
        trains="front_end",
        steps=6000,
        batch_size=20,
        crop=(320, 320),
        optimizer=optimizer,
        evaluate_every=2000,
        checkpoint_every=500,
    )
    crf = CRFConfig(
        spatial_weight=3.0,
        spatial_sigma=3.0,
        bilateral_weight=4.0,
        bilateral_sigma_xy=121.0,
        bilateral_sigma_rgb=5.0,
        search=False,
    )
    return Config(
        name="paper",
        data=DataConfig("voc", train="train_aug"),
        model=ModelConfig("deeplab_largefov"),
        stages=(
            network,
            StageConfig("front_end_crf", trains="crf", start="front_end", crf=crf),
        ),
        needs_init=True,
    )


if __name__ == "__main__":
    run({"paper": paper}, __doc__)
