"""The folder of a run: its configuration, its data, its results, some predictions.

A run resumes only with the configuration and the data with which it started.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dilax.data import DATASETS, DatasetSpec, evenly_spread, open_source
from dilax.data.source import Joined
from dilax.evaluation import Scores, image_scores, stage_table
from dilax.inference import palette_image, save_image
from dilax.runtime.files import alone, write_text
from dilax.runtime.processes import differing_process, gathered, is_writer, wait_for_all
from dilax.training.build import build_spec, check_config
from dilax.training.checkpoint import unfinished_step
from dilax.training.config import Config, StageConfig
from dilax.training.initial import check_fits, check_init, locate_init
from dilax.training.loading import open_split
from dilax.training.records import read_record
from dilax.training.serialization import from_json, to_json


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share: its configuration, folder, and data.

    `watch` is called by the writing process when there is something new to show.
    """

    config: Config
    workdir: Path
    spec: DatasetSpec
    train: Sequence[dict]
    val: Sequence[dict]
    extra: Sequence[dict] = ()
    watch: Callable[[], None] = lambda: None

    def samples(self, stage: StageConfig) -> Sequence[dict]:
        """Return the images that a stage trains on."""
        return Joined(self.train, self.extra) if stage.extra else self.train

    def fingerprint(self) -> list[tuple[int, str, str]]:
        """Return (number, first id, last id) of the images of each source."""
        sources = [s for s in (self.train, self.val, self.extra) if len(s)]
        return [(len(s), s[0]["id"], s[len(s) - 1]["id"]) for s in sources]


@contextlib.contextmanager
def open_run(config: Config, workdir: Path) -> Iterator[Run]:
    """Do the same as `check_run`, and lock the folder for this run.

    Raises:
        ValueError: as `check_run`; if another process is training in the folder; or, in
            all processes of a job, if their configurations or images differ.
    """
    run = check_run(config, workdir)
    images, given = json.dumps(run.fingerprint()), json.loads(to_json(run.config))
    given["data"].pop("data_dir")  # it may differ between hosts
    given.pop("reading")
    for what, text in (("configuration", json.dumps(given)), ("images", images)):
        other = differing_process(text)
        if other is not None:
            raise ValueError(
                f"process {other} has another {what} than process 0; this is "
                f"process {jax.process_index()}, with {text[:200]}: give all processes "
                "the same flags and data"
            )
    refusal = (
        f"{workdir}: another process is training in this folder; wait until it has "
        "ended, or give another --workdir"
    )
    with contextlib.ExitStack() as stack:
        if is_writer():
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(workdir / ".lock", refusal))
            for partial in workdir.rglob(".*.partial"):  # left by a run that was killed
                partial.unlink()
        write_text(workdir / "data.json", images + "\n")
        write_text(workdir / "spec.json", to_json(run.spec))
        write_text(workdir / "config.json", to_json(run.config))
        wait_for_all(f"opened {workdir}")
        yield run


def check_run(config: Config, workdir: Path) -> Run:
    """Check the configuration and open the data; nothing is written.

    Returns:
        The run; its configuration names data and weights by absolute paths.

    Raises:
        ValueError: if the configuration cannot train, the data cannot be read, or the
            folder holds another run.

    Example:
        >>> from dilax.training.recipes import quickstart
        >>> run = check_run(quickstart(), Path("not/made/yet"))
        >>> len(run.train), len(run.val)
        (400, 100)
    """
    check_config(config)
    check_init(config)
    path, data = workdir / "config.json", config.data
    if data.data_dir:
        where = str(Path(data.data_dir).expanduser().resolve())
        data = dataclasses.replace(data, data_dir=where)
    config = dataclasses.replace(config, data=data)
    spec = build_spec(config)
    train, val = (open_split(data, spec, split) for split in (data.train, data.val))
    extra: Sequence[dict] = ()
    if data.extra:
        other = DATASETS[data.extra]
        if other.classes != spec.classes:
            raise ValueError(
                f"--config.data.extra={data.extra}: has other classes than {spec.name}"
            )
        extra = open_source(data.extra, other, data.data_dir, "train")
    if config.init:  # a run that has started has read it already
        init = locate_init(config.init, fetch=not path.exists())
        config = dataclasses.replace(config, init=init)
    run = Run(config, workdir, spec, train, val, extra)
    if path.exists():
        _check_same_config(from_json(Config, path), config, path)
        _check_same_data(run)
    elif any((workdir / name).exists() for name in ("checkpoints", "results.json")):
        raise ValueError(
            f"{workdir}: contains checkpoints or results of an unknown run, because it "
            "has no config.json; give another --workdir"
        )
    elif config.init:
        check_fits(config, spec)
    return run


def _check_same_config(old: Config, new: Config, path: Path) -> None:
    """Raise ValueError if the configuration differs from the folder's."""
    before, after = (json.loads(to_json(c)) for c in (old, new))
    for side in (before, after):
        for name in ("data_dir", "images", "labels", "classes"):
            side["data"].pop(name)  # data may move; the images are compared elsewhere
        side.pop("reading")  # reading only affects the speed
        side.pop("mesh")  # the devices may change
    # Stages may be added, such as a CRF.
    after["stages"] = after["stages"][: len(before["stages"])]
    if before != after:
        raise ValueError(
            f"{path}: this folder holds a run with another configuration "
            f"({_difference(before, after, '; ')}); give another --workdir, or the "
            "same flags to resume"
        )


def _check_same_data(run: Run) -> None:
    """Raise ValueError if the images or classes differ from those the run started with.

    Only their contents are compared: the folder may have been renamed.
    """
    began = json.loads(to_json(from_json(DatasetSpec, run.workdir / "spec.json")))
    images = read_record(run.workdir / "data.json", "give another --workdir", list)
    now = {"images": json.loads(json.dumps(run.fingerprint()))}
    now |= json.loads(to_json(run.spec))
    same = {"name": run.spec.name, "image_size": now["image_size"]}  # may differ
    before = {"images": images} | began | same
    if before != now:
        raise ValueError(
            f"{run.workdir}: this run started with other images or classes "
            f"({_difference(before, now)}); give the same data and flags as then, or "
            "another --workdir"
        )


def _difference(old: Any, new: Any, separator: str = ", ") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in new if old.get(k) != new[k]]
        parts = (f"{k}: {_difference(old.get(k), new[k])}" for k in keys)
        return separator.join(parts)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return ", ".join(f"[{i}] {_difference(a, b)}" for i, (a, b) in pairs if a != b)
    texts = [json.dumps(old), json.dumps(new)]
    pairs = enumerate(zip(*texts, strict=False))
    start = max(0, next((i for i, (a, b) in pairs if a != b), 0) - 20)
    there, here = ("…" * (start > 0) + text[start : start + 60] for text in texts)
    return f"{there} there, {here} here"


def kept_indices(config: Config, count: int) -> set[int]:
    """Return the evaluation images whose predictions are saved, or shown."""
    return {
        *evenly_spread(count, config.saved_predictions),
        *evenly_spread(count, config.pictures),
    }


def run_results(run: Run) -> dict[str, Any]:
    """Return the results of the run's finished stages.

    Raises:
        ValueError: as `read_results`.
    """
    return {
        "config": run.config.name,
        "data": run.spec.name,
        "split": run.config.data.val,
        "images": len(run.val),
        "seed": run.config.seed,
        "stages": {},
        **read_results(run.workdir, run.config),
    }


def read_results(workdir: Path, config: Config) -> dict[str, Any]:
    """Return the finished stages in `results.json`; {} if there is no file.

    The entry of a stage that was interrupted, or whose last checkpoint is missing, is
    left out.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    path = workdir / "results.json"
    remedy = "delete it, and repeat the training command to evaluate the stages again"
    found = read_record(path, remedy)
    if not found:
        return {}
    known = workdir / "spec.json"
    classes = from_json(DatasetSpec, known).classes if known.exists() else None
    try:
        for name, scores in found["stages"].items():
            config.stage(name)
            if classes not in (None, tuple(scores["iou_per_class"])):
                raise ValueError("classes that are not those of spec.json")
            counts = np.array(scores["confusion"], object)
            again = Scores(tuple(scores["iou_per_class"]), counts).as_dict()
            if json.dumps(again) != json.dumps({key: scores[key] for key in again}):
                raise ValueError("figures that do not follow from its counts")
        unfinished = [
            stage.name
            for stage in config.stages
            if unfinished_step(workdir, stage) is not None
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: is damaged ({error}); {remedy}") from error
    stages = {n: s for n, s in found["stages"].items() if n not in unfinished}
    return {**found, "stages": stages}


def write_results(
    run: Run, results: dict[str, Any], stage: StageConfig, scores: Scores
) -> dict[str, Any]:
    """Add a stage to `results.md` and `results.json`; return the results."""
    found = {**results["stages"], stage.name: scores.as_dict()}
    stages = {s.name: found[s.name] for s in run.config.stages if s.name in found}
    results = {**results, "stages": stages}
    table = stage_table(stages, run.spec.context_classes)
    write_text(run.workdir / "results.md", table + "\n")
    write_text(run.workdir / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def predictions_folder(workdir: Path, stage: str) -> Path:
    """Return the folder of a stage's saved predictions: `0017.png` is of image 17.

    Example:
        >>> predictions_folder(Path("runs/voc"), "joint").as_posix()
        'runs/voc/predictions/joint'
    """
    return workdir / "predictions" / stage


class SavedPredictions:
    """Takes an evaluation's predictions, and saves some as files, with their scores.

    All stages save the predictions of the same images, so that they can be compared.
    Each process writes its own share; the first one writes the scores.

    Args:
        run: the run.
        stage: the stage that is evaluated.
    """

    def __init__(self, run: Run, stage: StageConfig):
        self._run = run
        self._folder = predictions_folder(run.workdir, stage.name)
        self._chosen = kept_indices(run.config, len(run.val))
        self._scores = np.full(len(run.val), np.nan)

    def add(self, index: int, sample: dict, prediction: np.ndarray) -> None:
        """Save the prediction of image `index`, if it is one of the chosen images."""
        if index not in self._chosen:
            return
        spec = self._run.spec
        picture = palette_image(prediction, spec)
        save_image(picture, self._folder / f"{index:04d}.png")
        found = image_scores(
            spec.classes, sample["label"], prediction, spec.ignore_label
        )
        self._scores[index] = found.mean_iou

    def finish(self) -> None:
        """Write `scores.json`: the mean IoU of each saved image, or null."""
        every = gathered(self._scores)
        known = np.where(np.isnan(every), 0, every).sum(0)
        none = np.isnan(every).all(0)
        scores = {
            str(i): None if none[i] else round(float(known[i]), 6)
            for i in sorted(self._chosen)
        }
        write_text(self._folder / "scores.json", json.dumps(scores) + "\n")
