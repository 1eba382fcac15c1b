"""Rows of the paper's tables, found in the folders of runs by what their stages are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dilax.evaluation import Scores
from dilax.models import BASIC, CITYSCAPES, KITTI, LARGE
from dilax.report.paper import System
from dilax.training import Config, StageConfig, from_json

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
