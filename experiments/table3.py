"""Context modules and CRFs, alone and combined (Yu & Koltun 2016, Table 3).

    python experiments/table3.py --workdir=runs/table3
    python experiments/table3.py --config=camvid --seeds=0,1,2 --workdir=runs/camvid3
    python experiments/table3.py --config=voc_paper --config.init=vgg16 --workdir=DIR

Nine stages: the front end alone, with a Basic, and with a Large context module; each of
the three without a CRF, with a dense CRF whose parameters are searched on the
validation images, and with a CRF-RNN that is trained. Prints the IoU of all classes and
the 3×3 table of mean IoU beside the paper's (69.8 to 73.9 on VOC's validation images,
trained with COCO), writes it to table3.md and table3.json, and resumes like every
experiment.

scenes      Rendered scenes, a few minutes on two cores; needs no data.
camvid      CamVid as in camvid.py --config=small.
camvid_scratch
            CamVid as in camvid.py --config=scratch, with the undilated controls of both
            modules, and trimap IoU.
camvid_narrow
            The same with the quickstart's front end, which sees 30 pixels; no CRFs.
voc         VOC as in voc.py --config=small.
kitti       KITTI as in kitti.py --config=small.
cityscapes  Cityscapes as in cityscapes.py --config=small.
voc_paper   §5 at full width; see voc.py.

For your own images: --config=voc --config.data.dataset=folder --data_dir=DIR, with a
scale and crops that suit them. All options of folder.py apply.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dilax.cli import run
from dilax.crf.search import CRFGrid
from dilax.report import table3, table3_figures
from dilax.training import (
    Config,
    CRFConfig,
    ModelConfig,
    StageConfig,
    adam,
    quickstart,
    rnn_stage,
    structured,
    write_text,
)
from dilax.training.recipes import TINY
from experiments import camvid as camvid_recipes
from experiments import cityscapes as cityscapes_recipes
from experiments import kitti as kitti_recipes
from experiments import voc as voc_recipes


def scenes() -> Config:
    """The quickstart's front end and context module, and the table's other stages."""
    grid = CRFGrid((2.0, 8.0), (15.0, 60.0), (5.0, 13.0))
    dense = CRFConfig(grid=grid, search_images=16)
    config = structured(quickstart(), dense, scenes_rnn())
    config.stage("large").steps = 250
    return config


def scenes_rnn() -> StageConfig:
    """Whole images, as the context modules see nothing beyond a crop."""
    fields = {"bilateral_sigma_xy": 30.0, "bilateral_sigma_rgb": 10.0}
    return rnn_stage(40, 2, (278, 278), learning_rate=2e-2, **fields)


def small(config: Config) -> Config:
    """Return the nine stages on the front end and context of a `small` recipe."""
    rnn = rnn_stage(200, 2, config.stages[0].crop, bilateral_sigma_rgb=10.0)
    for stage in config.stages:
        stage.evaluate_every = 0  # the table needs only the final scores
    return structured(config, CRFConfig(search_images=30), rnn)


def camvid() -> Config:
    """As camvid.py --config=small."""
    return small(camvid_recipes.small())


def camvid_scratch() -> Config:
    """As camvid.py --config=scratch, but shorter; undilated controls, trimap IoU."""
    config = camvid_recipes.scratch()
    config.stage("front_end").steps, config.stage("context").steps = 2500, 400
    dense = CRFConfig(grid=CRFGrid((3.0, 6.0), (80.0,), (8.0,)), search_images=10)
    rnn = rnn_stage(60, 2, (240, 320), bilateral_sigma_rgb=8.0)
    config = structured(config, dense, rnn, controls=True)
    config.boundaries = True
    return config


def camvid_narrow() -> Config:
    """The same on a front end that sees 30 pixels, without CRFs."""
    config = camvid_scratch()
    config.model = ModelConfig(layers=TINY, padding="same", upsample=True)
    config.stages = tuple(stage for stage in config.stages if not stage.crf)
    front_end = config.stage("front_end")
    front_end.steps, front_end.optimizer = 1500, adam(2e-3)
    return config


def voc() -> Config:
    """As voc.py --config=small."""
    return small(voc_recipes.small())


def kitti() -> Config:
    """As kitti.py --config=small."""
    return small(kitti_recipes.small())


def cityscapes() -> Config:
    """As cityscapes.py --config=small."""
    return small(cityscapes_recipes.small())


def full() -> Config:
    """§5 at full width."""
    return structured(voc_recipes.paper(), CRFConfig(), voc_recipes.rnn())


def summarize(runs: Sequence[Mapping], workdir: Path) -> str:
    """Write Table 3 into the folder, and return it."""
    text = table3(runs)
    write_text(workdir / "table3.md", text + "\n")
    figures = json.dumps(table3_figures(runs), indent=1)
    write_text(workdir / "table3.json", figures + "\n")
    return text


CONFIGURATIONS = {
    "scenes": scenes,
    "camvid": camvid,
    "camvid_scratch": camvid_scratch,
    "camvid_narrow": camvid_narrow,
    "voc": voc,
    "kitti": kitti,
    "cityscapes": cityscapes,
    "voc_paper": full,
}

if __name__ == "__main__":
    run(CONFIGURATIONS, __doc__, summarize=summarize)
