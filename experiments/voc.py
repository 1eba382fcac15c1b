"""Pascal VOC 2012 (Yu & Koltun 2016, §4 and §5), and the quickstart.

    python experiments/voc.py --config=quickstart --workdir=runs/quickstart
    dilax data prepare voc --from VOC
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

from dilax.cli import run
from dilax.training import Config, DataConfig, quickstart, slim, voc_paper


def small() -> Config:
    """VOC at half resolution with VGG-16 ÷ 8, from scratch."""
    data = DataConfig("voc", scale=0.5, class_weight_power=0.5)
    return slim(data, crop=(240, 240), steps=(2500, 600, 500))


paper = voc_paper

if __name__ == "__main__":
    run({"quickstart": quickstart, "small": small, "paper": paper}, __doc__)
