"""Training in stages (paper §5 and Appendix A): the phases of a run, in order.

Whatever ends a run, the same call goes on from its last checkpoint and reaches what an
uninterrupted run reaches: batches, dropout and order depend on the seed and the step.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dilax.evaluation import Scores, evaluate
from dilax.models import DilatedNet
from dilax.runtime.processes import Interrupted, Interrupts, gathered, is_writer
from dilax.training.checkpoint import Checkpoints, stage_params
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.crf_parameters import find_dense
from dilax.training.initial import params_from_init
from dilax.training.inputs import stage_batches, stage_inputs, stage_weights
from dilax.training.pretrained import stage_predictor
from dilax.training.records import MetricWriter, progress, record_stage, write_text
from dilax.training.run import (
    Run,
    SavedPredictions,
    open_run,
    read_results,
    write_results,
)
from dilax.training.sharding import Placement
from dilax.training.stage_crf import Params, init_stage
from dilax.training.step import TrainState, init_state, jit_train_step, split_params


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became infinite or NaN; the message names the step.

    Example:
        >>> raise NonFiniteLoss("stage 'joint', step 7: loss nan")
        Traceback (most recent call last):
            ...
        dilax.training.loop.NonFiniteLoss: stage 'joint', step 7: loss nan
    """


def train(
    config: Config, workdir: str | Path, watch: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Trains all stages of a recipe, evaluates each, and writes it all into a folder.

    Writes `config.json`, `spec.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
    `maps/`, `crf/`, `predictions/`, `machine.json`, `results.json` and `results.md`;
    where it starts from weights of a file, `init.txt` says what became of them. Called
    again with the same configuration it goes on where it stopped.

    Args:
        config: the run.
        workdir: its folder; it is made.
        watch: called by the process that writes, whenever there is something new to
            look at: after an evaluation, a checkpoint or a stage.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: for a configuration that cannot train, data that cannot be read, or
            a folder that holds another run.
        NonFiniteLoss: naming the step.
        Interrupted: after SIGINT or SIGTERM, when the state is saved.

    Example:
        >>> import tempfile
        >>> from dilax.training import load_checkpoint, quickstart
        >>> config = quickstart()
        >>> config.stages = config.stages[:1]
        >>> config.stages[0].steps = 1
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     results = train(config, workdir)
        ...     model, params, spec = load_checkpoint(workdir)
        >>> results["images"], list(results["stages"]), model.num_classes
        (100, ['front_end'], 8)
    """
    run = open_run(config, Path(workdir).expanduser().resolve())
    results = read_results(run)
    show = watch if is_writer() else None
    for stage in config.stages:
        if stage.name in results["stages"]:
            continue
        model, params = train_stage(run, stage, show)
        start = time.perf_counter()
        scores = evaluate_stage(run, stage, model, params)
        seconds = time.perf_counter() - start
        results["stages"][stage.name] = scores.as_dict()
        write_results(run, results)
        record_stage(run.workdir, stage.name, evaluation_seconds=seconds)
        if show:
            show()
    return results


def train_stage(
    run: Run, stage: StageConfig, show: Callable[[], None] | None = None
) -> tuple[DilatedNet, Params]:
    """Trains a stage from its start or last checkpoint; returns all parameters."""
    if stage.crf_kind == "dense":
        return find_dense(run, stage)
    model = build_model(run.config, stage, run.spec.num_classes)
    placement = Placement(run.config, stage, model)
    checkpoints = Checkpoints(run.workdir, stage.name)
    try:
        params = _start(run, stage, model, fresh=checkpoints.latest is None)
        trained, frozen = placement.parameters(split_params(params, stage))
        state = placement.parameters(init_state(trained, stage))
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
        if int(state.step) < stage.steps:
            reports = checkpoints, show
            state = _run_steps(run, stage, model, placement, state, frozen, *reports)
    finally:
        checkpoints.close()
    return model, placement.local({**frozen, **state.averaged})


def _start(run: Run, stage: StageConfig, model: DilatedNet, fresh: bool) -> Params:
    """What a stage's parameters are before its first step."""
    params = init_stage(model, stage, run.spec, run.config.seed)
    if stage.start:
        started = stage_params(run.workdir, run.config, stage.start, run.spec)
        return {**params, **{k: v for k, v in started.items() if k in params}}
    if not run.config.init or not fresh:
        return params
    network = {name: part for name, part in params.items() if name != "crf"}
    network, report = params_from_init(run.config, run.spec, model, network)
    if is_writer():
        print(report)
    write_text(run.workdir / "init.txt", f"stage {stage.name}\n{report}\n")
    return {**params, **network}


def _run_steps(
    run: Run,
    stage: StageConfig,
    model: DilatedNet,
    placement: Placement,
    state: TrainState,
    frozen: Params,
    checkpoints: Checkpoints,
    show: Callable[[], None] | None,
) -> TrainState:
    """The loop: batches in, steps, reports, evaluations, checkpoints."""
    start = int(state.step)
    source, monitor = stage_inputs(run, stage, model, placement.local(frozen))
    batches = stage_batches(run, stage, model, source, start)
    weights = stage_weights(run.config, run.train, run.spec)
    weights = placement.parameters(weights)
    step = jit_train_step(model, stage, run.spec, run.config.seed, placement)
    with Interrupts() as interrupts, _Reporter(run, stage, start) as reporter:
        batch = reporter.next_batch(batches, placement)
        for number in range(start + 1, stage.steps + 1):
            state, metrics = step(state, frozen, batch, weights)
            if number < stage.steps:  # while the device works
                batch = reporter.next_batch(batches, placement)
            reporter.add(number, metrics)
            stop = _agreed(interrupts.signum, number, run.config.log_every)
            every = stage.evaluate_every
            evaluates = every > 0 and number % every == 0
            last = number == stage.steps or stop
            if evaluates or last or number % stage.checkpoint_every == 0:
                reporter.catch_up()
                mean_iou = None
                if evaluates:
                    trained = placement.local(state.averaged)
                    mean_iou = reporter.evaluation(number, *monitor(trained))
                checkpoints.save(state, mean_iou)
                if show:
                    show()
                reporter.begin_timing()
            if stop:
                raise Interrupted(
                    stop,
                    f"stopped and saved at step {number} of stage {stage.name!r}; "
                    "the same command goes on from there",
                )
    return state


def _agreed(signum: int, number: int, log_every: int) -> int:
    """The signal on which all processes end after this step; 0 for none.

    One process heeds it at once. Several ask each other every few steps.
    """
    if jax.process_count() > 1 and number % min(log_every, 10):
        return 0
    return int(gathered(np.array(signum, np.int64)).max())


class _Reporter:
    """Looks at each step's metrics one step later, so that the device never waits."""

    def __init__(self, run: Run, stage: StageConfig, start: int):
        self._stage, self._every = stage, run.config.log_every
        self._writer = MetricWriter(run.workdir, stage.name, start)
        self._bar = progress(stage.name, stage.steps, start)
        self._last: tuple[int, dict] | None = None
        self._losses: list[float] = []
        self.begin_timing()

    def __enter__(self) -> "_Reporter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self._writer.close()

    def begin_timing(self) -> None:
        """Steps are timed from here: what came before was no training."""
        self._waited, self._timed, self._since = 0.0, 0, time.perf_counter()

    def next_batch(self, batches: Iterator[Any], placement: Placement) -> Any:
        """A batch on its way to the devices; the wait for it is waiting for input."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return placement.batch(batch)

    def add(self, number: int, metrics: dict) -> None:
        """Takes a step's metrics, and reports those of the step before."""
        for value in metrics.values():
            value.copy_to_host_async()
        self.catch_up()
        self._last = number, metrics

    def catch_up(self) -> None:
        """Reports the step that waits.

        Raises:
            NonFiniteLoss: if its loss or gradient is not finite.
        """
        if self._last is None:
            return
        (number, metrics), self._last = self._last, None
        values = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            raise NonFiniteLoss(
                f"stage {self._stage.name!r}, step {number}: loss {values['loss']}, "
                f"gradient norm {values['gradient_norm']}. Lower "
                "optimizer.learning_rate or set optimizer.clip, in a new --workdir"
            )
        self._losses.append(values["loss"])
        self._timed += 1
        rate = f"{values['learning_rate']:.1e}"
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", lr=rate, refresh=False)
        self._bar.update()
        if number % self._every == 0 or number == self._stage.steps:
            values["loss"] = sum(self._losses) / len(self._losses)
            self._losses = []
            seconds = time.perf_counter() - self._since
            values["step_seconds"] = seconds / self._timed
            values["input_wait"] = self._waited / seconds
            self.begin_timing()
            self._writer.write(number, values)

    def evaluation(self, number: int, name: str, scores: Scores) -> float:
        """Reports an evaluation under the name of its measure; returns the mean IoU."""
        self._writer.write(number, {name: scores.mean_iou})
        self._bar.write(
            f"{self._stage.name} step {number}: {name} {scores.mean_iou:.3f}"
        )
        return scores.mean_iou


def evaluate_stage(
    run: Run, stage: StageConfig, model: DilatedNet, params: Params
) -> Scores:
    """Accuracy at full resolution; some predictions are kept as palette PNGs."""
    predictor = stage_predictor(
        run.workdir, stage, model, params, run.spec, run.config.eval_batch_size
    )
    kept = SavedPredictions(run, stage)
    title, near = f"evaluate {stage.name}", run.config.boundaries
    scores = evaluate(predictor, run.val, title, kept.add, near)
    kept.finish()
    return scores
