"""The folder of a run: what it is of, the data that it opens, what it found."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dilax.datasets import DATASETS, DatasetSpec, Joined, open_source
from dilax.evaluation import stage_table
from dilax.ops.hosts import wait_for_all
from dilax.training.checks import check_config
from dilax.training.config import (
    Config,
    DataConfig,
    StageConfig,
    build_spec,
    from_json,
    to_json,
)
from dilax.training.initial import check_fits, check_init
from dilax.training.metrics import write_text
from dilax.training.same_run import (
    check_same_config,
    check_same_data,
    check_same_everywhere,
    fingerprint,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: Config
    workdir: Path
    spec: DatasetSpec
    train: Sequence[dict]
    val: Sequence[dict]
    extra: Sequence[dict] = ()

    def samples(self, stage: StageConfig) -> Sequence[dict]:
        """The images that a stage trains on."""
        return Joined(self.train, self.extra) if stage.extra else self.train


def open_run(config: Config, workdir: Path) -> Run:
    """As `check_run`, and claims the folder for this run."""
    run = check_run(config, workdir)
    check_same_everywhere(config, [run.train, run.val])
    sources = [run.train, run.val, *([run.extra] if config.data.extra else [])]
    write_text(workdir / "data.json", json.dumps(fingerprint(sources)) + "\n")
    write_text(workdir / "spec.json", to_json(run.spec))
    write_text(workdir / "config.json", to_json(config))
    wait_for_all(f"opened {workdir}")
    return run


def check_run(config: Config, workdir: Path) -> Run:
    """Checks the configuration and opens the data; nothing is written.

    Example:
        >>> from dilax.training.recipes import quickstart
        >>> run = check_run(quickstart(), Path("not/made/yet"))
        >>> len(run.train), len(run.val)
        (400, 100)
    """
    check_config(config)
    check_init(config)
    data = config.data
    if data.data_dir:
        data.data_dir = str(Path(data.data_dir).expanduser().resolve())
    if config.init:
        config.init = str(Path(config.init).expanduser().resolve())
    spec = build_spec(config)
    sources = [_open(data, spec, split) for split in (data.train, data.val)]
    if data.extra:
        sources.append(_open_extra(data, spec))
    path = workdir / "config.json"
    if path.exists():
        check_same_config(from_json(Config, path), config, path)
        check_same_data(workdir, spec, sources)
    elif config.init:
        check_fits(config, spec)
    return Run(config, workdir, spec, *sources)


def open_evaluation(
    workdir: Path, data_dir: str = "", split: str = ""
) -> tuple[Config, DatasetSpec, Sequence[dict]]:
    """Configuration, data set and evaluation images of a run's folder.

    Args:
        workdir: the run's folder.
        data_dir: where the data lies now, if it moved.
        split: to open; "" is the one that the run evaluates on.

    Example:
        >>> import tempfile
        >>> from dilax.training.recipes import quickstart
        >>> config = quickstart()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "config.json"), to_json(config))
        ...     write_text(Path(folder, "spec.json"), to_json(build_spec(config)))
        ...     _, spec, images = open_evaluation(Path(folder))
        >>> spec.name, len(images)
        ('scenes', 100)
    """
    config = from_json(Config, workdir / "config.json")
    spec = from_json(DatasetSpec, workdir / "spec.json")
    config.data.data_dir = data_dir or config.data.data_dir
    config.data.val = split or config.data.val
    return config, spec, _open(config.data, spec, config.data.val)


def _open(data: DataConfig, spec: DatasetSpec, split: str) -> Sequence[dict]:
    return open_source(
        data.dataset,
        spec,
        data.data_dir,
        split,
        variant=data.variant,
        images=data.images,
        labels=data.labels,
        seed=data.seed,
        skip_unreadable=data.skip_unreadable,
    )


def _open_extra(data: DataConfig, spec: DatasetSpec) -> Sequence[dict]:
    other = DATASETS[data.extra]
    if other.classes != spec.classes:
        raise ValueError(
            f"--config.data.extra={data.extra}: has other classes than {spec.name}"
        )
    return open_source(data.extra, other, data.data_dir, "train")


def picture_indices(config: Config, count: int) -> list[int]:
    """Which of `count` evaluation images to show: `config.pictures`, evenly spread.

    Example:
        >>> from dilax.training.recipes import quickstart
        >>> picture_indices(quickstart(), 100)
        [0, 16, 33, 50, 66, 83]
    """
    return _spread(config.pictures, count)


def kept_indices(config: Config, count: int) -> set[int]:
    """Of which of `count` evaluation images to keep predictions, the shown included."""
    return {*_spread(config.kept, count), *picture_indices(config, count)}


def _spread(wanted: int, count: int) -> list[int]:
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]


def read_results(run: Run) -> dict[str, Any]:
    """What the run's finished stages found so far."""
    path = run.workdir / "results.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    return {
        "config": run.config.name,
        "data": run.spec.name,
        "split": run.config.data.val,
        "images": len(run.val),
        "seed": run.config.seed,
        "stages": {},
    }


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Writes `results.md` and `results.json`."""
    table = stage_table(results["stages"], run.spec.context_classes)
    write_text(run.workdir / "results.md", table + "\n")
    write_text(run.workdir / "results.json", json.dumps(results, indent=1) + "\n")
