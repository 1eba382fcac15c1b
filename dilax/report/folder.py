"""What the folder of a run holds, read for a page: finished, or on its way."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dilax.datasets import DatasetSpec
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
