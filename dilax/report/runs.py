"""Read the folders of runs: for a page, over seeds, and for the paper's tables.

A run may still be training. For the paper's tables (Tables 2 to 8), each stage is
identified by its network, context module and CRF.
"""

import dataclasses
import itertools
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
from dilax.training.records import read_metrics, read_results


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run, as read from its files.

    Attributes:
        path: the folder.
        title: short title that is unique among the runs of a page.
        config: configuration of the run.
        spec: specification of its data set.
        results: content of `results.json`; no stages if none is complete.
        metrics: entries of `metrics.jsonl`.
        machine: content of `machine.json`, or an empty dict.
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
        """Stage name → scores, for the completed stages."""
        return self.results["stages"]

    @property
    def is_done(self) -> bool:
        """Whether all stages are complete."""
        return len(self.stages) == len(self.config.stages)

    def steps(self, stage: StageConfig) -> int:
        """Optimizer steps of a stage; 0 for a dense CRF, which is not trained."""
        return 0 if stage.crf_kind == "dense" else stage.steps

    def spans(self) -> dict[str, tuple[int, int]]:
        """Stage name → (first, last) step, counted since the run began."""
        stages = self.config.stages
        ends = itertools.accumulate(map(self.steps, stages))
        return {
            s.name: (e - self.steps(s), e) for s, e in zip(stages, ends, strict=True)
        }

    def series(self, name: str) -> dict[str, tuple[list[int], list[float]]]:
        """Stage name → (steps since the run began, values) of a logged scalar."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        spans = self.spans()
        for line in self.metrics:
            if line.get(name) is not None and line["stage"] in spans:
                steps, values = found.setdefault(line["stage"], ([], []))
                steps.append(spans[line["stage"]][0] + line["step"])
                values.append(float(line[name]))
        return found


def read_runs(workdirs: Sequence[str | Path]) -> list[RunFolder]:
    """Read the folders of runs, and give each a short, unique title.

    Raises:
        ValueError: if a folder is not a run's, is given twice, or its classes differ
            from those of the first run.
    """
    paths = [Path(workdir).expanduser().resolve() for workdir in workdirs]
    repeated = [path for path in paths if paths.count(path) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]}: is given twice; name each run once")
    titles = _titles(paths)
    runs = [_read(path, title) for path, title in zip(paths, titles, strict=True)]
    for run in runs:
        if run.spec.classes != runs[0].spec.classes:
            pairs = itertools.zip_longest(runs[0].spec.classes, run.spec.classes)
            differing = [
                (i, *pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]
            ]
            number, one, other = differing[0]
            raise ValueError(
                f"{run.path}: has other classes than {runs[0].path}: class {number} is "
                f"{other!r}, not {one!r}, and {len(differing) - 1} more differ; "
                "compare runs of one data set"
            )
    return runs


def stage_title(run: RunFolder, stage: str, runs: int) -> str:
    """The title of a stage on a page of `runs` runs."""
    words = stage.replace("_", " ")
    return words if runs == 1 else f"{run.title}: {words}"


def _titles(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    longest = max(len(path.parts) for path in paths)
    for parts in range(1, longest):
        titles = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(titles)) == len(paths):
            break
    return titles


def _read(path: Path, title: str) -> RunFolder:
    config = from_json(Config, path / "config.json")
    spec = from_json(DatasetSpec, path / "spec.json")
    nothing = {"stages": {}, "images": None, "split": config.data.val}
    results = {**nothing, **read_results(path, config)}
    machine = read_machine(path)
    return RunFolder(path, title, config, spec, results, read_metrics(path), machine)


def seed_table(runs: Sequence[Mapping], style: str = "github") -> str:
    """Tabulate the mean IoU of each stage for each seed, in percent.

    Args:
        runs: results of `train`, one per seed.
        style: table format of `tabulate`.

    Returns:
        The table; its last column is the mean ± sample standard deviation.

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
    """Format the mean in percent; of several values, ± sample standard deviation.

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


class SystemResult(NamedTuple):
    """The results of a system in one run.

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
        return [found.scores for found in runs.values()]


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
            scores = _with_categories(result["stages"][stage.name], categories)
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
