"""The paper's Tables 2 to 8, one command each (Yu & Koltun 2016, §4, §5, Appendix A).

    python experiments/tables.py --table=2 --workdir=runs/table2
    python experiments/tables.py --table=5 --config=camvid --seeds=0,1,2 --workdir=DIR
    python experiments/tables.py --table=5 --mode=collect --runs=DIR,DIR --workdir=DIR

2  FCN-8s, DeepLab, and DeepLab-MSc against the simplified front end.
3  Context, dense CRF, and CRF-RNN, alone and combined; as experiments/table3.py.
4  The best systems of Table 3 against DeepLab++, DeepLab-MSc++, and CRF-RNN.
5  SegNet and DeepLab-LargeFOV against Dilation8, on streets (CamVid).
6  DeepLab-LargeFOV against Dilation7 (KITTI).
7  Dilation10 by class (Cityscapes).
8  Dilation10 by category.

Trains every system of a table from random weights with the same images, loss,
optimizer, number of steps, and evaluation (a front end that is also trained jointly
with a context module has fewer steps of its own). Writes our figures beside the paper's
to tableN.md and tableN.json. Rows that are only quoted are marked, and rows that cannot
run here say what they need. The same command resumes.

--mode=collect trains nothing: it takes the rows from the runs in the folders --runs,
which it recognizes by their stages. They may be runs of any experiment on the same
images.

scenes      Rendered scenes, a few minutes per table on two cores; needs no data. Towers
            differ only in what surrounds them.
camvid, voc, kitti, cityscapes
            As --config=small of the experiment of that name.
"""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dilax.cli import run
from dilax.crf.search import CRFGrid
from dilax.data import Augmentation
from dilax.models import BASIC, CITYSCAPES, KITTI, LARGE, ContextLayer
from dilax.report import PAPER, collect, paper_figures, paper_table
from dilax.report.paper import System
from dilax.training import (
    Config,
    CRFConfig,
    DataConfig,
    StageConfig,
    rnn_stage,
    with_crfs,
    write_text,
)
from experiments import camvid, cityscapes, kitti, table3, voc

CONTEXT: Mapping[str, tuple[ContextLayer, ...]] = {
    "basic": BASIC,
    "large": LARGE,
    "kitti": KITTI,
    "cityscapes": CITYSCAPES,
}
# The categories of Table 8 for data sets that define none.
CATEGORIES = {
    "scenes": (
        ("sky", ("sky",)),
        ("ground", ("water", "road", "grass")),
        ("tower", ("lighthouse", "office", "silo")),
        ("balloon", ("balloon",)),
    )
}


def scenes() -> Config:
    """Scenes at half size: maps of 16×16 cells."""
    config = voc.small()
    config.data = DataConfig("scenes", scale=0.5, class_weight_power=0.5)
    for stage, steps in zip(config.stages, (500, 500, 500, 100), strict=True):
        stage.steps, stage.crop = steps, (128, 128)
        stage.batch_size, stage.checkpoint_every = 4, 100
        stage.augmentation = Augmentation()
    config.eval_batch_size = 8
    return config


SMALL: Mapping[str, Callable[[], Config]] = {
    "scenes": scenes,
    "camvid": camvid.small,
    "voc": voc.small,
    "kitti": kitti.small,
    "cityscapes": cityscapes.small,
}


def recipe(number: int, name: str) -> Config:
    """Return the run that produces a table's rows on a data set.

    Args:
        number: of the table, 2 to 8.
        name: of the configuration.
    """
    if number == 3:
        return table3.CONFIGURATIONS[name]()
    base = SMALL[name]()
    systems = [row.system for row in PAPER[number].rows if row.system]
    stages = [
        stage
        for network in dict.fromkeys(system.network for system in systems)
        for stage in _stages([s for s in systems if s.network == network], base, number)
    ]
    return dataclasses.replace(base, name=f"table{number}", stages=tuple(stages))


def _stages(systems: list[System], base: Config, number: int) -> list[StageConfig]:
    """Return the stages of all systems with one network, from those of a slim recipe.

    In Tables 5 to 8 the context module is trained on maps, then jointly with the front
    end (Appendix A); the other tables have no joint training (§5).
    """
    network = systems[0].network
    front_end, joint = (copy.deepcopy(base.stage(n)) for n in ("front_end", "joint"))
    front_end.name = network
    if network != "front_end":
        front_end.model = dataclasses.replace(base.model, network=network)
    stages = {"": front_end}
    for name in dict.fromkeys(s.context for s in systems if s.context):
        context = copy.deepcopy(base.stage("context"))
        context.name, context.context = name, CONTEXT[name]
        stages[name] = context
        if number >= 5:
            front_end.steps -= joint.steps
            joint.start, joint.context = name, CONTEXT[name]
            stages["joint"] = joint
    return [*stages.values(), *_crf_stages(systems, stages, base)]


def _crf_stages(
    systems: list[System], stages: Mapping[str, StageConfig], base: Config
) -> list[StageConfig]:
    found = []
    for system in systems:
        if system.crf:
            network = stages[system.context]
            dense, rnn = with_crfs(network, _dense(base), _rnn(base))
            stage = dense if system.crf == "dense" else rnn
            found.append(dataclasses.replace(stage, model=network.model))
    return found


def _dense(base: Config) -> CRFConfig:
    if base.data.dataset != "scenes":
        return CRFConfig(search_images=30)
    return CRFConfig(grid=CRFGrid((2.0, 8.0), (15.0, 60.0), (5.0,)), search_images=16)


def _rnn(base: Config) -> StageConfig:
    if base.data.dataset != "scenes":
        crop = base.stage("front_end").crop
        return rnn_stage(200, 2, crop, bilateral_sigma_rgb=10.0)
    fields = {"bilateral_sigma_xy": 30.0, "bilateral_sigma_rgb": 10.0}
    return rnn_stage(40, 2, (128, 128), learning_rate=2e-2, **fields)


def write_table(number: int, folders: Sequence[Path], workdir: Path) -> str:
    """Write tableN.md and tableN.json from runs, and return the text.

    Args:
        number: of the table.
        folders: of runs.
        workdir: where to write.
    """
    found = collect(folders)
    if number == 8 and found.data in CATEGORIES:
        found = collect(folders, CATEGORIES[found.data])
    text = paper_table(number, found)
    write_text(workdir / f"table{number}.md", text + "\n")
    figures = json.dumps(paper_figures(number, found), indent=1)
    write_text(workdir / f"table{number}.json", figures + "\n")
    return text


def _chosen() -> int:
    """Return the table's number; raise ValueError if the command line has none."""
    if flags.FLAGS.table is None:
        raise ValueError("--table: give the number of the paper's table, 2 to 8")
    return flags.FLAGS.table


def _summarize(runs: Sequence[Mapping], workdir: Path) -> str:
    text = write_table(_chosen(), [workdir], workdir)
    return f"{text}\n\nwritten to {workdir / f'table{_chosen()}.md'}, and as JSON"


def _collect(values: Any) -> None:
    if not values.runs:
        raise ValueError("--runs: give the folders of the runs to collect, DIR,DIR")
    workdir = Path(values.workdir).expanduser()
    print(f"\n{write_table(_chosen(), [*map(Path, values.runs)], workdir)}\n")


def _configuration(name: str) -> Callable[[], Config]:
    """Return a function that builds the configuration of the chosen table."""
    return lambda: recipe(_chosen(), name)


CONFIGURATIONS = {name: _configuration(name) for name in SMALL}

if __name__ == "__main__":
    flags.DEFINE_integer(
        "table", None, "Number of the paper's table.", lower_bound=2, upper_bound=8
    )
    flags.DEFINE_list("runs", [], "collect: folders of runs, DIR,DIR.")
    run(CONFIGURATIONS, __doc__, summarize=_summarize, modes={"collect": _collect})
