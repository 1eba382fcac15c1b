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
camvid_vgg  CamVid at full width, as in camvid.py --config=vgg, with the same controls;
            needs trained convolutions (--config.init).
camvid_narrow
            As camvid_scratch, with the quickstart's front end (it sees 30 pixels) and
            without CRFs.
voc         VOC as in voc.py --config=small.
voc_vgg     VOC at full width, as in voc.py --config=vgg, with controls and trimap IoU.
kitti       KITTI as in kitti.py --config=small.
cityscapes  Cityscapes as in cityscapes.py --config=small.
voc_paper   §5 at full width; see voc.py.

For your own images: --config=voc --config.data.dataset=folder --data_dir=DIR, with a
scale and crops that suit them. All options of folder.py apply.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dilax.cli import run
from dilax.crf.search import CRFGrid
from dilax.evaluation.evaluate import figure_table
from dilax.report import PAPER
from dilax.report.tables import spread
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


def with_controls(config: Config) -> Config:
    """Return the nine stages on a recipe, undilated controls, and trimap IoU."""
    dense = CRFConfig(grid=CRFGrid((3.0, 6.0), (80.0,), (8.0,)), search_images=10)
    rnn = rnn_stage(60, 2, config.stages[0].crop, bilateral_sigma_rgb=8.0)
    config = structured(config, dense, rnn, controls=True)
    config.boundaries = True
    return config


def camvid_scratch() -> Config:
    """As camvid.py --config=scratch, but shorter; undilated controls, trimap IoU."""
    config = camvid_recipes.scratch()
    config.stage("front_end").steps, config.stage("context").steps = 2500, 400
    return with_controls(config)


def camvid_vgg() -> Config:
    """As camvid.py --config=vgg; undilated controls, trimap IoU."""
    config = with_controls(camvid_recipes.vgg())
    for name in ("large", "large_control"):  # with up to 1408 maps
        stage = config.stage(name)
        stage.steps, stage.optimizer.learning_rate = 200, 3e-4  # as on VOC
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


def voc_vgg() -> Config:
    """As voc.py --config=vgg; undilated controls, trimap IoU."""
    return with_controls(voc_recipes.vgg())


def kitti() -> Config:
    """As kitti.py --config=small."""
    return small(kitti_recipes.small())


def cityscapes() -> Config:
    """As cityscapes.py --config=small."""
    return small(cityscapes_recipes.small())


def full() -> Config:
    """§5 at full width."""
    return structured(voc_recipes.paper(), CRFConfig(), voc_recipes.rnn())


NETWORKS = {"front_end": "front end", "basic": "+ Basic", "large": "+ Large"}
CONTROLS = {"basic_control": "+ Basic undilated", "large_control": "+ Large undilated"}
AFTER = {"": "no CRF", "_crf": "dense CRF", "_crfrnn": "CRF-RNN"}

# Mean IoU in percent: three networks per row, in the order of the paper.
MEANS = {
    end: tuple(row.mean for row in PAPER[3].rows[3 * i : 3 * i + 3])
    for i, end in enumerate(AFTER)
}

TRIMAP = 4  # pixels on each side of a boundary


def table3(runs: Sequence[Mapping]) -> str:
    """Tabulate Table 3: mean IoU in percent, of one run or over seeds.

    Args:
        runs: results of `train` with the recipe `structured`, one per seed; missing
            stages are shown as a dash.

    Returns:
        The table; over several seeds, mean ± sample standard deviation. Undilated
        controls have their own columns, and trimap IoU its own table, if present.
    """
    networks = _networks(runs)
    papers = [f"paper: {title}" for title in NETWORKS.values()]
    rows = [
        [title, *_row(runs, networks, end), *(f"{value:.1f}" for value in MEANS[end])]
        for end, title in AFTER.items()
    ]
    tables = [figure_table("mean IoU, %", [*networks.values(), *papers], rows)]
    if any("trimap_iou" in stage for run in runs for stage in run["stages"].values()):
        head = f"mean IoU within {TRIMAP} px of a boundary, %"
        near = [
            [title, *_row(runs, networks, end, trimap=True)]
            for end, title in AFTER.items()
        ]
        tables.append(figure_table(head, [*networks.values()], near))
    return "\n\n".join(tables)


def table3_figures(runs: Sequence[Mapping]) -> dict[str, Any]:
    """Return the numbers of `table3`, from 0 to 1, for JSON.

    Returns:
        `{"seeds": […], "stages": {name: {"mean_iou": […], "mean", "sd", "paper"}}}`;
        `"sd"` is None for a single run, `"paper"` for a control; `"trimap_iou": […]`
        is added if it was measured.
    """
    stages = {}
    for end in AFTER:
        for i, network in enumerate(_networks(runs)):
            values = _values(runs, network + end)
            if not values:
                continue
            near = _values(runs, network + end, trimap=True)
            stages[network + end] = {
                "mean_iou": values,
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                **({"trimap_iou": near} if near else {}),
                "paper": round(MEANS[end][i] / 100, 3) if network in NETWORKS else None,
            }
    return {"seeds": [run["seed"] for run in runs], "stages": stages}


def _networks(runs: Sequence[Mapping]) -> dict[str, str]:
    """Stage name → title of the networks, with the controls that were trained."""
    trained = {name for run in runs for name in run["stages"]}
    return NETWORKS | {n: title for n, title in CONTROLS.items() if n in trained}


def _row(
    runs: Sequence[Mapping], networks: Mapping, end: str, trimap: bool = False
) -> list[str]:
    found = (_values(runs, network + end, trimap) for network in networks)
    return [spread(values) if values else "–" for values in found]


def _values(runs: Sequence[Mapping], stage: str, trimap: bool = False) -> list[float]:
    found = [run["stages"][stage] for run in runs if stage in run["stages"]]
    if trimap:
        return [s["trimap_iou"][str(TRIMAP)] for s in found if "trimap_iou" in s]
    return [s["mean_iou"] for s in found]


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
    "camvid_vgg": camvid_vgg,
    "camvid_narrow": camvid_narrow,
    "voc": voc,
    "voc_vgg": voc_vgg,
    "kitti": kitti,
    "cityscapes": cityscapes,
    "voc_paper": full,
}

if __name__ == "__main__":
    run(CONFIGURATIONS, __doc__, summarize=summarize)
