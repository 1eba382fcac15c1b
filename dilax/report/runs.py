"""Rows of the paper's tables, found in the folders of runs by what their stages are.

What the folder of a run holds, read for a page: finished, or on its way.

Several seeds of a run beside each other: mean IoU of every stage, and the mean.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dilax.data import DatasetSpec
from dilax.evaluation import Scores
from dilax.evaluation.tables import figure_table
from dilax.models import BASIC, CITYSCAPES, KITTI, LARGE
from dilax.report.paper import System
from dilax.training import Config, StageConfig, from_json, read_machine


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run as its files tell it.

    Attributes:
        path: of the folder.
        title: that tells it from other runs.
        config: of the run.
        spec: of its data set.
        results: `results.json`, without stages as long as none is done.
        metrics: lines of `metrics.jsonl`.
        machine: `machine.json`, or nothing.
    """

    path: Path
    title: str
    config: Config
    spec: DatasetSpec
    results: dict[str, Any]
    metrics: list[dict[str, Any]]
    machine: dict[str, Any]

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage name → its scores, of the stages that are done."""
        return self.results["stages"]

    @property
    def is_done(self) -> bool:
        """Whether every stage is."""
        return len(self.stages) == len(self.config.stages)

    def steps(self, stage: StageConfig) -> int:
        """Optimizer steps of a stage: none of a dense CRF, which is searched for."""
        return 0 if stage.crf_kind == "dense" else stage.steps

    def offsets(self) -> dict[str, int]:
        """Stage name → the steps of the stages before it."""
        found, total = {}, 0
        for stage in self.config.stages:
            found[stage.name] = total
            total += self.steps(stage)
        return found

    def series(self, name: str) -> dict[str, tuple[list[int], list[float]]]:
        """Stage name → (steps of the whole run, values) of a logged scalar."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        offsets = self.offsets()
        for line in self.metrics:
            if line.get(name) is not None and line["stage"] in offsets:
                steps, values = found.setdefault(line["stage"], ([], []))
                steps.append(offsets[line["stage"]] + line["step"])
                values.append(float(line[name]))
        return found


def read_runs(workdirs: Sequence[str | Path]) -> list[RunFolder]:
    """Reads the folders, and gives each the shortest title that tells it apart.

    Raises:
        ValueError: naming the folder that is no run's, that is there twice, or whose
            classes are not those of the first.
    """
    paths = [Path(workdir).expanduser().resolve() for workdir in workdirs]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]}: is named twice; name each run once")
    titles = _titles(paths)
    runs = [_read(path, title) for path, title in zip(paths, titles, strict=True)]
    for run in runs:
        if run.spec.classes != runs[0].spec.classes:
            raise ValueError(
                f"{run.path}: has other classes than {runs[0].path}; compare runs of "
                "one data set"
            )
    return runs


def stage_title(run: RunFolder, stage: str, runs: int) -> str:
    """What a stage is called on a page of so many runs."""
    words = stage.replace("_", " ")
    return words if runs == 1 else f"{run.title}: {words}"


def _titles(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    longest = max(len(path.parts) for path in paths)
    for parts in range(1, longest):
        titles = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(titles)) == len(paths):
            break
    return titles


def _read(path: Path, title: str) -> RunFolder:
    config = from_json(Config, path / "config.json")
    spec = from_json(DatasetSpec, path / "spec.json")
    results = {"stages": {}, "images": None, "split": config.data.val}
    found = path / "results.json"
    if found.exists():
        results = json.loads(found.read_text("utf-8"))
    log = path / "metrics.jsonl"
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    metrics = [entry for line in lines if (entry := _entry(line)) is not None]
    return RunFolder(path, title, config, spec, results, metrics, read_machine(path))


def _entry(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # cut off: the run is writing it, or was killed
        return None


def seed_table(runs: Sequence[Mapping], style: str = "github") -> str:
    """Mean IoU of every stage under every seed, in per cent.

    Args:
        runs: what `train` returned for each seed.
        style: a format of `tabulate`.

    Returns:
        The table; its last column is the mean ± the sample standard deviation.

    Example:
        >>> runs = [
        ...     {"seed": seed, "stages": {"joint": {"mean_iou": iou}}}
        ...     for seed, iou in enumerate((0.5, 0.6))
        ... ]
        >>> print(seed_table(runs))
        | mean IoU, %   |   seed 0 |   seed 1 |   mean ± sd |
        |---------------|----------|----------|-------------|
        | joint         |     50.0 |     60.0 |  55.0 ± 7.1 |
    """
    rows = []
    for name in runs[0]["stages"]:
        values = [run["stages"][name]["mean_iou"] for run in runs]
        rows.append(
            [
                name.replace("_", " "),
                *(f"{100 * v:.1f}" for v in values),
                spread(values),
            ]
        )
    seeds = [f"seed {run['seed']}" for run in runs]
    return figure_table("mean IoU, %", [*seeds, "mean ± sd"], rows, style)


def spread(values: Sequence[float]) -> str:
    """The mean in per cent, and of several values ± their sample standard deviation.

    Example:
        >>> spread([0.5, 0.75]), spread([0.5])
        ('62.5 ± 17.7', '50.0')
    """
    mean = f"{100 * statistics.fmean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.1f}"


Categories = tuple[tuple[str, tuple[str, ...]], ...]

_CONTEXT: Mapping[tuple, Any] = {
    (): "",
    BASIC: "basic",
    LARGE: "large",
    KITTI: "kitti",
    CITYSCAPES: "cityscapes",
}


class Found(NamedTuple):
    """What a run found of a system.

    Attributes:
        folder: of the run.
        stage: its stage of that system; of several, the last one.
        steps: of the optimizer, of each stage on the way, such as `"250 + 500"`.
        scores: what `Scores.as_dict` gives.
    """

    folder: Path
    stage: str
    steps: str
    scores: Mapping[str, Any]


class Collected(NamedTuple):
    """What runs on one data set found.

    Attributes:
        data: name of the data set.
        split: on which it was measured.
        images: in it.
        systems: system → seed → what the run of this seed found.

    Example:
        >>> Collected("KITTI", "test", 46, {}).scores(System(context="kitti"))
        []
    """

    data: str
    split: str
    images: int
    systems: Mapping[System, Mapping[int, Found]]

    def scores(self, system: System | None) -> list[Mapping[str, Any]]:
        """Of a system, a run each; empty if there is none."""
        runs = self.systems.get(system, {}) if system else {}
        return [found.scores for found in runs.values()]


def collect(folders: Sequence[Path], categories: Categories = ()) -> Collected:
    """Reads what runs found, and sorts it by system.

    Args:
        folders: of runs, or of runs of several seeds; a later one counts where two
            have the same system and seed.
        categories: (name, classes) groups, measured where the data set has none.

    Raises:
        ValueError: if a folder holds no results, or they are of several data sets.

    Example:
        >>> collect([Path("nowhere")])
        Traceback (most recent call last):
        ValueError: --runs=nowhere: holds no results; give what --workdir named when ...
    """
    places = [place for folder in folders for place in run_folders(folder)]
    results = [_results(place) for place in places]
    kinds = {(r["data"], r["split"], r["images"]) for r in results}
    if len(kinds) != 1:
        names = ", ".join(f"{data} {split}" for data, split, _ in sorted(kinds))
        raise ValueError(
            f"--runs={','.join(map(str, folders))}: are of {names or 'nothing'}; give "
            "runs that were evaluated on the same images"
        )
    systems: dict[System, dict[int, Found]] = {}
    for place, result in zip(places, results, strict=True):
        config = from_json(Config, place / "config.json")
        for stage in config.stages:
            if stage.name not in result["stages"]:
                continue
            scores = _with_categories(result["stages"][stage.name], categories)
            found = Found(place, stage.name, steps_of(config, stage), scores)
            systems.setdefault(system_of(config, stage), {})[config.seed] = found
    return Collected(*kinds.pop(), systems)


def system_of(config: Config, stage: StageConfig) -> System:
    """The system that a stage of a run is.

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
    """Steps of a stage and of those that it starts from, the first one first.

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
    """The folder of a run itself, or its seeds'.

    Raises:
        ValueError: if it holds no results.
    """
    folder = folder.expanduser()
    if (folder / "results.json").exists():
        return [folder]
    seeds = sorted(path.parent for path in folder.glob("seed*/results.json"))
    if not seeds:
        raise ValueError(
            f"--runs={folder}: holds no results; give what --workdir named when it "
            "was trained"
        )
    return seeds


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text("utf-8"))


def _with_categories(scores: Mapping, categories: Categories) -> Mapping[str, Any]:
    if not categories or "iou_per_category" in scores:
        return scores
    names, counts = tuple(scores["iou_per_class"]), np.array(scores["confusion"])
    measured = Scores(names, counts.astype(object), categories)
    return {
        **scores,
        "iou_per_category": measured.iou_per_category,
        "mean_category_iou": measured.mean_category_iou,
    }
