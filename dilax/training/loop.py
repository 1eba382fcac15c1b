"""Training in stages (paper §5 and Appendix A).

After any interruption, the same call resumes from the last checkpoint and gives the
result of an uninterrupted run: batches, their order, and dropout depend only on the
seed and the step.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from dilax.crf.search import search_crf
from dilax.evaluation import Scores, evaluate
from dilax.inference import Predictor
from dilax.models import DilatedNet
from dilax.runtime.files import write_text
from dilax.runtime.processes import (
    Interrupted,
    Interrupts,
    gathered,
    is_writer,
    wait_for_all,
)
from dilax.training.build import Params, build_model, init_stage
from dilax.training.checkpoint import Checkpoints, DamagedCheckpoint, stage_params
from dilax.training.config import Config, StageConfig
from dilax.training.initial import params_from_init
from dilax.training.inputs import class_weights, stage_batches, stage_inputs
from dilax.training.loading import Trained, dense_file, stage_predictor
from dilax.training.records import Reporter, record_stage
from dilax.training.run import (
    Run,
    SavedPredictions,
    open_run,
    run_results,
    write_results,
)
from dilax.training.serialization import to_json
from dilax.training.sharding import Placement
from dilax.training.step import TrainState, init_state, jit_train_step, split_params


def train(
    config: Config, workdir: str | Path, watch: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Train all stages of a recipe, evaluate each, and write everything to a folder.

    Writes `config.json`, `spec.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
    `maps/`, `crf/`, `predictions/`, `machine.json`, `results.json`, and `results.md`;
    and, if the run starts from a file of weights, `init.txt`, a report on what was
    used. If a run with the same configuration was stopped, it resumes.

    Args:
        config: the run.
        workdir: its folder, which is created.
        watch: called by the writing process after each evaluation, checkpoint, and
            stage.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: if the configuration cannot train, the data cannot be read, or the
            folder holds another run.
        NonFiniteLoss: if the loss is no longer finite; it names the step.
        Interrupted: after SIGINT or SIGTERM, when the state has been saved.

    Example:
        >>> import dataclasses, tempfile
        >>> from dilax.training import load_checkpoint, quickstart
        >>> config = quickstart()
        >>> first = dataclasses.replace(config.stages[0], steps=1)
        >>> config = dataclasses.replace(config, stages=(first,))
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     results = train(config, workdir)
        ...     model, params, spec = load_checkpoint(workdir)
        >>> results["images"], list(results["stages"]), model.num_classes
        (100, ['front_end'], 8)
    """
    with open_run(config, Path(workdir).expanduser().resolve()) as run:
        if watch and is_writer():
            run = dataclasses.replace(run, watch=watch)
        results = run_results(run)
        for stage in config.stages:
            if stage.name in results["stages"]:
                continue
            trained = train_stage(run, stage)
            start = time.perf_counter()
            scores = _evaluate_stage(run, stage, trained)
            seconds = time.perf_counter() - start
            results = write_results(run, results, stage, scores)
            record_stage(run.workdir, stage.name, evaluation_seconds=seconds)
            run.watch()
        return results


def train_stage(run: Run, stage: StageConfig) -> Trained:
    """Train a stage from its start or its last checkpoint."""
    config, spec = run.config, run.spec
    model = build_model(config, stage, spec.num_classes)
    if stage.crf_kind == "dense":
        params = _stage_params(run, stage.start)
        predictor = Predictor(model, params, spec, config.eval_batch_size)
        _find_dense(run, stage, predictor)
        return Trained(model, params, spec)
    placement = Placement(config, stage, model)
    checkpoints = Checkpoints(run.workdir, stage.name)
    try:
        params = _start(run, stage, model, fresh=checkpoints.latest is None)
        trained, frozen = placement.parameters(split_params(params, stage))
        state = placement.parameters(init_state(trained, stage))
        losses: tuple[float, ...] = ()
        if checkpoints.latest is not None:
            state, losses = checkpoints.restore(state)
        if int(state.step) < stage.steps:
            step, log_every = int(state.step), run.config.log_every
            reporter = Reporter(run.workdir, stage, step, log_every, losses)
            state = _run_steps(
                run, stage, model, placement, state, frozen, checkpoints, reporter
            )
    finally:
        checkpoints.close()
    params = placement.local({**frozen, **state.averaged})
    return Trained(model, params, spec)


def _find_dense(run: Run, stage: StageConfig, predictor: Predictor) -> None:
    """Store the parameters of a stage's dense CRF, searched or as configured.

    As in §5, the search uses the images on which the stage is evaluated, too. An
    interrupted search resumes.
    """
    config, path = stage.crf, dense_file(run.workdir, stage)
    assert config is not None
    if not path.exists() and is_writer():
        if config.search:
            best = search_crf(
                predictor,
                run.val,
                run.workdir / "crf" / f"{stage.name}_search.json",
                images=config.search_images,
                grid=config.grid,
                iterations=config.iterations,
                title=f"search {stage.name}",
            ).best
            found = {n: v for n, v in vars(best).items() if hasattr(config, n)}
            config = dataclasses.replace(config, **found)
        write_text(path, to_json(config))
    wait_for_all(f"dense CRF of {stage.name}")


def _stage_params(run: Run, name: str) -> Params:
    """Return the parameters of a finished stage.

    If its checkpoint is damaged, train it again from the previous one.
    """
    try:
        return stage_params(run.workdir, run.config, name, run.spec)
    except DamagedCheckpoint as error:
        logging.warning("%s", error)
        return train_stage(run, run.config.stage(name)).params


def _start(run: Run, stage: StageConfig, model: DilatedNet, fresh: bool) -> Params:
    """Return a stage's parameters before its first step."""
    params = init_stage(model, stage, run.spec, run.config.seed)
    if stage.start:
        started = _stage_params(run, stage.start)
        return {**params, **{k: v for k, v in started.items() if k in params}}
    if not run.config.init or not fresh:  # a checkpoint will replace them
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
    reporter: Reporter,
) -> TrainState:
    """Run the remaining steps, with reports, evaluations, and checkpoints."""
    start, log_every = int(state.step), run.config.log_every
    source, monitor = stage_inputs(run, stage, model, placement.local(frozen))
    batches = stage_batches(run, stage, model, source, start)
    power = run.config.data.class_weight_power
    weights = class_weights(run.train, run.spec, power) if power else None
    weights = placement.parameters(weights)
    step = jit_train_step(model, stage, run.spec, run.config.seed, placement)
    with Interrupts() as interrupts, reporter:
        batch = reporter.next_batch(batches, placement)
        for number in range(start + 1, stage.steps + 1):
            state, metrics = step(state, frozen, batch, weights)
            if number < stage.steps:  # load the next batch while the device works
                batch = reporter.next_batch(batches, placement)
            reporter.add(number, metrics)
            # A single process stops at once. Several agree on it every few steps.
            asks = jax.process_count() == 1 or number % min(log_every, 10) == 0
            signum = _agreed(interrupts) if asks else 0
            evaluates = stage.evaluate_every and number % stage.evaluate_every == 0
            last = number == stage.steps
            if evaluates or number % stage.checkpoint_every == 0 or last or signum:
                reporter.catch_up()  # do not save a state whose loss is not finite
                reporter.check_parameters(number, state.params)
                mean_iou = None
                if evaluates:
                    scores = monitor(placement.local(state.averaged))
                    mean_iou = reporter.evaluation(number, *scores)
                checkpoints.save(state, mean_iou, reporter.losses)
                run.watch()
                reporter.begin_timing()
            if signum or (last and (signum := _agreed(interrupts))):
                raise Interrupted(
                    signum,
                    f"stopped and saved at step {number} of stage {stage.name!r}; "
                    "the same command resumes from there",
                )
    return state


def _agreed(interrupts: Interrupts) -> int:
    """Return the signal on which all processes stop after this step; 0 for none."""
    return int(gathered(np.array(interrupts.signum, np.int64)).max())


def _evaluate_stage(run: Run, stage: StageConfig, trained: Trained) -> Scores:
    """Measure a stage at full resolution, and save some of its predictions."""
    predictor = stage_predictor(run.workdir, stage, trained, run.config.eval_batch_size)
    saved = SavedPredictions(run, stage)
    title = f"evaluate {stage.name}"
    scores = evaluate(predictor, run.val, title, saved.add, run.config.boundaries)
    saved.finish()
    return scores
