"""Tables 2 to 8 of Yu & Koltun (2016): the paper's accuracy, and ours of its systems.

A system is identified by its network, context module and CRF, in the paper's rows as in
the stages of runs.

Example:
    >>> [(row.name, row.mean) for row in PAPER[5].rows if not row.system]
    [('ALE', 53.6), ('SuperParsing', 42.0), ('Liu and He', 47.2)]
"""

import csv
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dilax.data import DATASETS
from dilax.evaluation import Scores
from dilax.models import BASIC, CITYSCAPES, KITTI, LARGE, Named
from dilax.training import Config, StageConfig, from_json
from dilax.training.run import read_results


class System(NamedTuple):
    """A network with its context module and CRF; rows and stages are matched by it.

    Attributes:
        network: the front end or a baseline network.
        context: name of the context module; `"other"` if it is not in the paper.
        crf: kind of CRF.
    """

    network: Literal["front_end", Named] = "front_end"
    context: Literal["", "basic", "large", "kitti", "cityscapes", "other"] = ""
    crf: Literal["", "dense", "rnn"] = ""


class PaperRow(NamedTuple):
    """A row of a table.

    Attributes:
        name: name in the paper.
        iou: IoU per column, in percent.
        mean: mean IoU in percent; on VOC, it includes the background.
        system: the system of this row in dilax; None if there is none.
        note: how ours differs from the paper's, or what the row requires.
    """

    name: str
    iou: tuple[float, ...]
    mean: float
    system: System | None = None
    note: str = ""


class PaperTable(NamedTuple):
    """A table of the paper.

    Attributes:
        images: the images on which the paper measured.
        columns: names of classes or categories, as in `dilax.data.DATASETS`.
        rows: rows from top to bottom.
        categories: whether the columns are categories of classes.
    """

    images: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    categories: bool = False


_VOC = DATASETS["voc"].classes[1:]  # the paper's tables leave out the background
_STREETS = DATASETS["camvid"].classes
_CATEGORIES = ("flat", "nature", "object", "sky", "construction", "human", "vehicle")
_TABLES = {
    2: ("the test set of Pascal VOC 2012", _VOC),
    3: ("the validation set of Pascal VOC 2012", _VOC),
    4: ("the test set of Pascal VOC 2012", _VOC),
    5: ("the test set of CamVid", _STREETS),
    6: ("the test set of KITTI", _STREETS),
    7: ("Cityscapes", DATASETS["cityscapes"].classes),
    8: ("Cityscapes", _CATEGORIES),
}


def _read_tables() -> dict[int, PaperTable]:
    """Read `paper.csv`: a line per row, with the numbers as in the paper."""
    text = resources.files("dilax.report").joinpath("paper.csv").read_text("utf-8")
    rows: dict[int, list[PaperRow]] = {number: [] for number in _TABLES}
    line: dict[str, Any]
    for line in csv.DictReader(text.splitlines()):
        system = System(line["network"], line["context"], line["crf"])
        found, note = (system, "") if system.network else (None, "quoted")
        iou = tuple(map(float, line["iou"].split()))
        row = PaperRow(
            line["name"], iou, float(line["mean"]), found, line["note"] or note
        )
        rows[int(line["table"])].append(row)
    return {
        number: PaperTable(*head, tuple(rows[number]), categories=number == 8)
        for number, head in _TABLES.items()
    }


PAPER = _read_tables()

Categories = tuple[tuple[str, tuple[str, ...]], ...]

_CONTEXT: Mapping[tuple, Any] = {
    (): "",
    BASIC: "basic",
    LARGE: "large",
    KITTI: "kitti",
    CITYSCAPES: "cityscapes",
}


class SystemResult(NamedTuple):
    """The result of a system in one run.

    Attributes:
        folder: folder of the run.
        stage: name of the system's stage; the last one if there are several.
        steps: optimizer steps of this stage and its predecessors, e.g. `"250 + 500"`.
        scores: result of `Scores.as_dict`.
    """

    folder: Path
    stage: str
    steps: str
    scores: Mapping[str, Any]

    def iou(self, by_category: bool = False) -> Mapping[str, float | None]:
        """IoU per class, or per category where categories were measured."""
        return self.scores.get(
            "iou_per_category" if by_category else "iou_per_class", {}
        )

    def mean_iou(self, by_category: bool = False) -> float | None:
        """Mean over classes or categories; None if these were not measured."""
        return self.scores.get("mean_category_iou" if by_category else "mean_iou")


class Collected(NamedTuple):
    """The results of runs on one data set, by system.

    Attributes:
        data: name of the data set.
        split: evaluation split.
        images: number of evaluation images.
        systems: system → seed → result.

    Example:
        >>> Collected("KITTI", "test", 46, {}).scores(System(context="kitti"))
        []
    """

    data: str
    split: str
    images: int
    systems: Mapping[System, Mapping[int, SystemResult]]

    def scores(self, system: System | None) -> list[Mapping[str, Any]]:
        """Scores of a system, one per run; empty if there are none."""
        runs = self.systems.get(system, {}) if system else {}
        return [result.scores for result in runs.values()]


def collect(folders: Sequence[Path], categories: Categories = ()) -> Collected:
    """Read the results of runs, and group them by system.

    Args:
        folders: folders of runs, or of runs over several seeds; if two have the same
            system and seed, the later one counts.
        categories: (name, classes) groups to measure if the data set has none.

    Raises:
        ValueError: if a folder has no results, or they are of several data sets.

    Example:
        >>> collect([Path("nowhere")])
        Traceback (most recent call last):
        ValueError: --runs=nowhere: has no results; give the --workdir of ...
    """
    paths = [path for folder in folders for path in run_folders(folder)]
    configs = [from_json(Config, path / "config.json") for path in paths]
    results = list(map(read_results, paths, configs))
    kinds = {
        (str(r.get("data")), str(r.get("split")), int(r.get("images", 0)))
        for r in results
    }
    if len(kinds) != 1:
        names = ", ".join(f"{data} {split}" for data, split, _ in sorted(kinds))
        raise ValueError(
            f"--runs={','.join(map(str, folders))}: are of {names or 'nothing'}; give "
            "runs that were evaluated on the same images"
        )
    systems: dict[System, dict[int, SystemResult]] = {}
    for path, config, result in zip(paths, configs, results, strict=True):
        for stage in config.stages:
            if stage.name not in result["stages"]:
                continue
            scores = result["stages"][stage.name]
            if categories and "iou_per_category" not in scores:
                counts = np.array(scores["confusion"]).astype(object)
                classes = tuple(scores["iou_per_class"])
                scores |= Scores(classes, counts, categories).as_dict()
            found = SystemResult(path, stage.name, steps_of(config, stage), scores)
            systems.setdefault(system_of(config, stage), {})[config.seed] = found
    return Collected(*kinds.pop(), systems)


def system_of(config: Config, stage: StageConfig) -> System:
    """Identify the system of a stage by its network, context module and CRF.

    Example:
        >>> from dilax.training import quickstart
        >>> config = quickstart()
        >>> system_of(config, config.stage("joint"))
        System(network='front_end', context='basic', crf='')
        >>> system_of(config, config.stage("control")).context
        'other'
    """
    model = stage.model or config.model
    context = _CONTEXT.get(tuple(stage.context), "other")
    return System(model.network, context, stage.crf_kind)


def steps_of(config: Config, stage: StageConfig) -> str:
    """Format the steps of a stage and its predecessors, in order of training.

    Example:
        >>> from dilax.training import quickstart
        >>> config = quickstart()
        >>> steps_of(config, config.stage("joint"))
        '250 + 500 + 100'
    """
    own = str(stage.steps)
    if stage.crf and stage.crf.kind == "dense":
        own = "search" if stage.crf.search else "none"
    if not stage.start:
        return own
    return f"{steps_of(config, config.stage(stage.start))} + {own}"


def run_folders(folder: Path) -> list[Path]:
    """Return the run in a folder, or the runs of its `seed*` subfolders.

    Raises:
        ValueError: if there are no results.
    """
    folder = folder.expanduser()
    if (folder / "results.json").exists():
        return [folder]
    seeds = sorted(path.parent for path in folder.glob("seed*/results.json"))
    if not seeds:
        raise ValueError(
            f"--runs={folder}: has no results; give the --workdir of the training run"
        )
    return seeds


# Data set → (table, row, split) of the results of the paper's own networks.
_ROWS = {
    "camvid": ((5, "Dilation8", "test"),),
    "kitti": ((6, "Dilation7", "test"),),
    "cityscapes": (
        (7, "Dilation10, validation set", "val"),
        (7, "Dilation10, test set", "test"),
    ),
}
_CRF = {"": "", "dense": "_crf", "rnn": "_crfrnn"}


class PaperColumn(NamedTuple):
    """A row of the paper's tables, shown as a column on the page of a run.

    Attributes:
        title: row and table.
        split: split of the data set on which it was measured.
        iou_per_class: class → IoU, 0..1; for VOC without the background, although the
            mean includes it.
        mean_iou: mean IoU, 0..1.
        stage: the corresponding stage of the recipe `structured`, or "".
    """

    title: str
    split: str
    iou_per_class: dict[str, float]
    mean_iou: float
    stage: str = ""


def paper_columns(dataset: str, stages: Sequence[str] = ()) -> list[PaperColumn]:
    """The paper's results on a data set; empty if there are none.

    Args:
        dataset: name of the data set, e.g. `"voc"`.
        stages: selects the rows of VOC's Table 3 for these stages; if fewer than two
            match, the three networks without a CRF are returned.

    Example:
        >>> [column] = paper_columns("camvid")
        >>> column.mean_iou, column.iou_per_class["Pole"]
        (0.653, 0.234)
    """
    if dataset != "voc":
        return [
            _column(number, row, split)
            for number, name, split in _ROWS.get(dataset, ())
            for row in PAPER[number].rows
            if row.name == name
        ]
    rows = {  # by stage of the recipe `structured`
        (row.system.context or "front_end") + _CRF[row.system.crf]: row
        for row in PAPER[3].rows
        if row.system
    }
    names = [name for name in rows if name in stages]
    if len(names) < 2:  # another recipe with other stage names
        names = ["front_end", "basic", "large"]
    return [_column(3, rows[name], "val")._replace(stage=name) for name in names]


def _column(number: int, row: PaperRow, split: str) -> PaperColumn:
    each = [round(figure / 100, 4) for figure in row.iou]
    iou = dict(zip(PAPER[number].columns, each, strict=True))
    return PaperColumn(
        f"{row.name}, Table {number}", split, iou, round(row.mean / 100, 4)
    )
