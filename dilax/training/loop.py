"""Training in stages (paper §5 and Appendix A): the phases of a run, in order.

Whatever ends a run, the same call goes on from its last checkpoint and reaches what an
uninterrupted run reaches: batches, dropout and order depend on the seed and the step.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dilax.datasets import DatasetSpec, open_source
from dilax.evaluation import (
    Scores,
    add_to_confusion,
    empty_confusion,
    evaluate,
    stage_table,
)
from dilax.inference import Predictor, palette_image, save_image
from dilax.input import CropGeometry, image_example, map_example, training_batches
from dilax.models import DilatedNet
from dilax.ops import jit
from dilax.training.checkpoint import Checkpoints, init_params, stage_params
from dilax.training.config import (
    Config,
    StageConfig,
    build_model,
    build_spec,
    check_config,
    from_json,
    to_json,
)
from dilax.training.interrupt import Interrupted, Interrupts
from dilax.training.losses import class_weights
from dilax.training.maps import StoredMaps, store_maps
from dilax.training.metrics import MetricWriter, progress, write_text
from dilax.training.same_run import (
    check_same_config,
    check_same_data,
    fingerprint,
)
from dilax.training.sharding import Placement
from dilax.training.step import (
    Params,
    TrainState,
    apply_stage,
    init_state,
    make_train_step,
    split_params,
)


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became infinite or NaN; the message names the step."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: Config
    workdir: Path
    spec: DatasetSpec
    train: Sequence[dict]
    val: Sequence[dict]


def train(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Trains all stages of a recipe, evaluates each, and writes it all into a folder.

    Writes `config.json`, `spec.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
    `maps/`, `predictions/`, `results.json` and `results.md`. Called again with the same
    configuration it goes on where it stopped.

    Args:
        config: the run.
        workdir: its folder; it is made.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: for a configuration that cannot train, data that cannot be read, or
            a folder that holds another run.
        NonFiniteLoss: naming the step.
        Interrupted: after SIGINT or SIGTERM, when the state is saved.
    """
    run = open_run(config, Path(workdir).expanduser().resolve())
    results = _read_results(run)
    for stage in config.stages:
        if stage.name in results["stages"]:
            continue
        model, params = train_stage(run, stage)
        scores = evaluate_stage(run, stage, model, params)
        results["stages"][stage.name] = scores.as_dict()
        _write_results(run, results)
    return results


def open_run(config: Config, workdir: Path) -> Run:
    """Checks the configuration, opens the data, and claims the folder for this run."""
    check_config(config)
    data = config.data
    if data.data_dir:
        data.data_dir = str(Path(data.data_dir).expanduser().resolve())
    spec = build_spec(config)
    sources = [_open(data, spec, split) for split in (data.train, data.val)]
    path = workdir / "config.json"
    if path.exists():
        check_same_config(from_json(Config, path), config, path)
        check_same_data(workdir, spec, sources)
    write_text(workdir / "data.json", json.dumps(fingerprint(sources)) + "\n")
    write_text(workdir / "spec.json", to_json(spec))
    write_text(path, to_json(config))
    return Run(config, workdir, spec, *sources)


def open_evaluation(
    workdir: Path, data_dir: str = ""
) -> tuple[Config, DatasetSpec, Sequence[dict]]:
    """Configuration, data set and evaluation images of a run's folder.

    Args:
        workdir: the run's folder.
        data_dir: where the data lies now, if it moved.
    """
    config = from_json(Config, workdir / "config.json")
    spec = from_json(DatasetSpec, workdir / "spec.json")
    config.data.data_dir = data_dir or config.data.data_dir
    return config, spec, _open(config.data, spec, config.data.val)


def _open(data: Any, spec: DatasetSpec, split: str) -> Sequence[dict]:
    return open_source(
        data.layout,
        spec,
        data.data_dir,
        split,
        seed=data.seed,
        skip_unreadable=data.skip_unreadable,
    )


def train_stage(run: Run, stage: StageConfig) -> tuple[DilatedNet, Params]:
    """Trains a stage from its start or last checkpoint; returns all parameters."""
    model = build_model(run.config.model, stage, run.spec.num_classes)
    placement = Placement(stage.batch_size // stage.accumulate)
    params = init_params(model, run.config.seed)
    if stage.start:
        count = run.spec.num_classes
        started = stage_params(run.workdir, run.config, stage.start, count)
        params = {**params, **{k: v for k, v in started.items() if k in params}}
    trained, frozen = placement.everywhere(split_params(params, stage))
    state = placement.everywhere(init_state(trained, stage))
    checkpoints = Checkpoints(run.workdir, stage.name)
    try:
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
        if int(state.step) < stage.steps:
            state = _run_steps(run, stage, model, placement, state, frozen, checkpoints)
    finally:
        checkpoints.close()
    return model, jax.device_put({**frozen, **state.params}, jax.devices()[0])


def _run_steps(
    run: Run,
    stage: StageConfig,
    model: DilatedNet,
    placement: Placement,
    state: TrainState,
    frozen: Params,
    checkpoints: Checkpoints,
) -> TrainState:
    """The loop: batches in, steps, reports, evaluations, checkpoints."""
    start = int(state.step)
    source, monitor = _stage_inputs(run, stage, model, frozen)
    example = _example(run, stage, model)
    batches = training_batches(
        source, example, stage.batch_size, run.config.seed, start
    )
    power = run.config.data.class_weight_power
    weights = class_weights(run.train, run.spec, power) if power else None
    step = make_train_step(model, stage, run.spec, run.config.seed, weights)
    step = jit(step, donate_argnums=0)
    with Interrupts() as interrupts, _Reporter(run, stage, start) as reporter:
        for number in range(start + 1, stage.steps + 1):
            state, metrics = step(state, frozen, placement.split(next(batches)))
            reporter.add(number, metrics)
            stop = interrupts.signum
            every = stage.evaluate_every
            evaluates = every > 0 and number % every == 0
            last = number == stage.steps or stop
            if evaluates or last or number % stage.checkpoint_every == 0:
                reporter.catch_up()
                mean_iou = None
                if evaluates:
                    mean_iou = reporter.evaluation(number, *monitor(state.params))
                checkpoints.save(state, mean_iou)
            if stop:
                raise Interrupted(
                    stop,
                    f"stopped and saved at step {number} of stage {stage.name!r}; "
                    "the same command goes on from there",
                )
    return state


class _Reporter:
    """Looks at each step's metrics one step later, so that the device never waits."""

    def __init__(self, run: Run, stage: StageConfig, start: int):
        self._stage, self._every = stage, run.config.log_every
        self._writer = MetricWriter(run.workdir, stage.name, start)
        self._bar = progress(stage.name, stage.steps, start)
        self._waiting: tuple[int, dict] | None = None
        self._losses: list[float] = []

    def __enter__(self) -> "_Reporter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self._writer.close()

    def add(self, number: int, metrics: dict) -> None:
        """Takes a step's metrics, and reports those of the step before."""
        self.catch_up()
        self._waiting = number, metrics

    def catch_up(self) -> None:
        """Reports the step that waits.

        Raises:
            NonFiniteLoss: if its loss or gradient is not finite.
        """
        if self._waiting is None:
            return
        (number, metrics), self._waiting = self._waiting, None
        values = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            raise NonFiniteLoss(
                f"stage {self._stage.name!r}, step {number}: loss {values['loss']}, "
                f"gradient norm {values['gradient_norm']}. Lower "
                "optimizer.learning_rate or set optimizer.clip, in a new --workdir"
            )
        self._losses.append(values["loss"])
        rate = f"{values['learning_rate']:.1e}"
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", lr=rate, refresh=False)
        self._bar.update()
        if number % self._every == 0 or number == self._stage.steps:
            values["loss"] = sum(self._losses) / len(self._losses)
            self._losses = []
            self._writer.write(number, values)

    def evaluation(self, number: int, name: str, scores: Scores) -> float:
        """Reports an evaluation under the name of its measure; returns the mean IoU."""
        self._writer.write(number, {name: scores.mean_iou})
        self._bar.write(
            f"{self._stage.name} step {number}: {name} {scores.mean_iou:.3f}"
        )
        return scores.mean_iou


Monitor = Callable[[Params], tuple[str, Scores]]


def _stage_inputs(
    run: Run, stage: StageConfig, model: DilatedNet, frozen: Params
) -> tuple[Sequence[dict], Monitor]:
    """The samples that a stage trains on, and how it is evaluated on the way."""
    predictor = Predictor(model, frozen, run.spec, run.config.eval_batch_size)
    if stage.inputs == "images":

        def monitor(trained: Params) -> tuple[str, Scores]:
            current = predictor.with_params({**frozen, **trained})
            return "val_mean_iou", evaluate(current, run.val, title="")

        return run.train, monitor
    folder = run.workdir / "maps" / stage.start
    train = store_maps(predictor, run.train, folder / "train", "maps for training")
    if not stage.evaluate_every:
        return train, _never
    val = store_maps(predictor, run.val, folder / "val", "maps for evaluation")
    return train, _map_monitor(run, stage, model, val)


def _never(trained: Params) -> tuple[str, Scores]:
    raise AssertionError("this stage is not evaluated while it trains")


def _map_monitor(
    run: Run, stage: StageConfig, model: DilatedNet, val: StoredMaps
) -> Monitor:
    """Accuracy on stored maps, at the network's own resolution: a training monitor."""

    @jit
    def count(confusion, trained, maps, labels):
        logits = apply_stage(model, stage, run.spec, trained, maps)
        guess = jnp.argmax(logits, -1)
        guess = guess[:, : labels.shape[1], : labels.shape[2]]
        return add_to_confusion(confusion, labels, guess, run.spec.ignore_label)

    def monitor(trained: Params) -> tuple[str, Scores]:
        confusion = empty_confusion(run.spec.num_classes)
        stride = model.output_stride
        for sample in val:
            maps, labels = sample["image"], sample["label"][::stride, ::stride]
            confusion = count(confusion, trained, maps[None], labels[None])
        name = f"val_mean_iou_stride_{stride}"
        return name, Scores.of(run.spec.classes, confusion)

    return monitor


def _example(run: Run, stage: StageConfig, model: DilatedNet):
    ignore, augmentation = run.spec.ignore_label, stage.augmentation
    if stage.inputs == "maps":
        height, width = stage.crop
        cells = height // model.map_stride, width // model.map_stride
        return map_example(
            cells, model.map_stride, model.output_stride, ignore, augmentation
        )
    geometry = CropGeometry(stage.crop, model.margin, model.output_stride, ignore)
    return image_example(geometry, augmentation, run.spec.scale)


def evaluate_stage(
    run: Run, stage: StageConfig, model: DilatedNet, params: Params
) -> Scores:
    """Accuracy at full resolution; some predictions are kept as palette PNGs."""
    predictor = Predictor(model, params, run.spec, run.config.eval_batch_size)
    folder = run.workdir / "predictions" / stage.name

    chosen = picture_indices(run.config, len(run.val))

    def keep(index: int, prediction: Any) -> None:
        if index in chosen:
            picture = palette_image(prediction, run.spec)
            save_image(picture, folder / f"{index:04d}.png")

    return evaluate(predictor, run.val, f"evaluate {stage.name}", keep)


def picture_indices(config: Config, count: int) -> list[int]:
    """Which of `count` evaluation images to show: `config.pictures`, evenly spread."""
    shown = min(config.pictures, count)
    return [i * count // shown for i in range(shown)]


def _read_results(run: Run) -> dict[str, Any]:
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


def _write_results(run: Run, results: dict[str, Any]) -> None:
    table = stage_table(results["stages"], run.spec.context_classes)
    write_text(run.workdir / "results.md", table + "\n")
    write_text(run.workdir / "results.json", json.dumps(results, indent=1) + "\n")
