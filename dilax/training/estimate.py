"""What a stage's training step costs, measured on empty images before a run begins.

`estimate` compiles the steps and runs them once or twice. `profile` traces some steps
and times every layer on its own, which gives the same table on every backend.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dilax.data import DatasetSpec
from dilax.profiling import NetworkCost, network_cost
from dilax.profiling.layer_costs import (
    layer_figures,
    layer_json,
    layer_table,
    time_layers,
)
from dilax.profiling.roofline import device_peak
from dilax.runtime.files import write_text
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.sharding import Placement
from dilax.training.stage_crf import init_stage, label_stride
from dilax.training.step import init_state, jit_train_step, split_params
from dilax.training.validation import check_config


class Cost(NamedTuple):
    """The cost of a stage.

    Attributes:
        memory: bytes that a step needs at most, as reported by the compiler.
        seconds: time of a step.
        steps: number of steps in the stage.
        flops: operations of the network in a step.

    Example:
        >>> Cost(memory=2 * 2**30, seconds=90.0, steps=100, flops=10**12).steps
        100
    """

    memory: int
    seconds: float
    steps: int
    flops: int

    def __str__(self) -> str:
        return (
            f"{self.steps} steps of {1000 * self.seconds:.3g} ms "
            f"({self.flops / 1e9:.3g} GFLOP, {self.flops / self.seconds / 1e9:.0f} "
            f"GFLOP/s), {self.steps * self.seconds / 60:.0f} minutes; "
            f"{self.memory / 1e9:.2f} GB"
        )


def estimate(config: Config, spec: DatasetSpec) -> dict[str, Cost]:
    """Return the cost of the stages that train on images, by name.

    It does not include loading images, computing maps and evaluating; nor stages that
    train on stored maps, whose steps are short, nor searches for dense CRFs.

    Args:
        config: the run.
        spec: its data set.

    Raises:
        ValueError: if the configuration cannot train.

    Example:
        >>> import dataclasses
        >>> from dilax.training import build_spec, quickstart
        >>> config = quickstart()
        >>> config = dataclasses.replace(config, stages=config.stages[:1])
        >>> estimate(config, build_spec(config))["front_end"].steps
        250
    """
    check_config(config)
    costs = {}
    for stage in _image_stages(config):
        step = empty_step(config, spec, stage)
        account: Any = step.compiled.memory_analysis()
        memory = account.temp_size_in_bytes + account.argument_size_in_bytes
        memory += account.output_size_in_bytes - account.alias_size_in_bytes
        step, first = _timed(step)
        seconds = first if first > 1 else min(first, _timed(step)[1])
        costs[stage.name] = Cost(memory, seconds, stage.steps, step.flops)
    return costs


def profile(
    config: Config, spec: DatasetSpec, folder: Path, steps: int = 3, repeats: int = 3
) -> dict[str, str]:
    """Trace each stage that trains on images, and time its layers.

    Writes `STAGE.md`, `STAGE.json` and the trace, `STAGE/`, for TensorBoard, XProf or
    ui.perfetto.dev. Steps run on empty images; how long real ones wait for input is
    `input_wait` in a run's metrics.

    Args:
        config: the run.
        spec: its data set.
        folder: to write to.
        steps: number of traced steps, which follow two others.
        repeats: measurements of each layer.

    Returns:
        The tables by stage.

    Example:
        >>> import dataclasses, tempfile
        >>> from dilax.training import build_spec, quickstart
        >>> config = quickstart()
        >>> first = dataclasses.replace(config.stages[0], crop=(38, 38), batch_size=1)
        >>> config = dataclasses.replace(config, stages=(first,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spec = build_spec(config)
        ...     list(profile(config, spec, Path(folder), steps=1, repeats=1))
        ['front_end']
    """
    peak, tables = device_peak(config.dtype), {}
    for stage in _image_stages(config):
        step = empty_step(config, spec, stage)
        seconds = _trace(step, folder / stage.name, steps)
        height, width = stage.crop
        rate = step.flops / statistics.median(seconds) / 1e9
        head = (
            f"Stage {stage.name}, layers on {step.together} of {stage.batch_size} "
            f"images of {width}×{height}, {step.times} times per step.\n{peak}\n"
            f"A step takes {1000 * statistics.median(seconds):.3g} ms: "
            f"{step.flops / 1e9:.3g} GFLOP, {rate:.0f} GFLOP/s"
        )
        cost = step.cost
        del step  # to free its memory
        figures = layer_figures(cost, peak, time_layers(cost.layers, peak, repeats))
        tables[stage.name] = f"{head}\n\n{layer_table(figures)}\n"
        record = {
            "step_seconds": seconds,
            "peak": peak._asdict(),
            "layers": layer_json(figures),
        }
        write_text(folder / f"{stage.name}.md", tables[stage.name])
        write_text(folder / f"{stage.name}.json", json.dumps(record, indent=1) + "\n")
    return tables


class EmptyStep(NamedTuple):
    """A compiled step and its arguments; the same program as in training.

    Attributes:
        compiled: takes the state and the rest, returns a state and metrics.
        state: before the first step; it is donated when the step runs.
        rest: frozen parameters, a batch, class weights.
        cost: of the network on the images that run together on a device.
        together: the number of these images.
        times: how often that happens in a step, on all devices.
    """

    compiled: jax.stages.Compiled
    state: Any
    rest: tuple
    cost: NetworkCost
    together: int
    times: int

    @property
    def flops(self) -> int:
        """Operations of the network in a step, on all devices."""
        return self.cost.total.flops * self.times

    def run(self) -> "EmptyStep":
        """Run a step, wait for it, and return what the next one starts from."""
        state, _ = jax.block_until_ready(self.compiled(self.state, *self.rest))
        return self._replace(state=state)


def empty_step(config: Config, spec: DatasetSpec, stage: StageConfig) -> EmptyStep:
    """Compile the step of a stage that trains on images.

    If there is a persistent compilation cache, training finds the program there.

    Args:
        config: the run.
        spec: its data set.
        stage: a stage of the run.
    """
    model = build_model(config, stage, spec.num_classes)
    placement = Placement(config, stage, model)
    params = init_stage(model, stage, spec, config.seed)
    trained, frozen = placement.parameters(split_params(params, stage))
    state = placement.parameters(init_state(trained, stage))
    weights = jnp.ones(spec.num_classes) if config.data.class_weight_power else None
    shape = (stage.batch_size, *stage.crop, len(spec.mean))
    stride = label_stride(model, stage)
    cells = [(side - 2 * model.margin) // stride for side in stage.crop]
    batch = {
        "image": jnp.zeros(shape, jnp.uint8),
        "label": jnp.zeros((stage.batch_size, *cells), jnp.uint8),
    }
    rest = frozen, placement.batch(batch), placement.parameters(weights)
    step = jit_train_step(model, stage, spec, config.seed, placement)
    compiled = step.lower(state, *rest).compile()
    times = stage.accumulate * placement.data
    together = stage.batch_size // times
    cost = network_cost(model, (together, *shape[1:]), [*trained])
    return EmptyStep(compiled, state, rest, cost, together, times)


def _image_stages(config: Config) -> list[StageConfig]:
    return [s for s in config.stages if s.inputs == "images" and s.crf_kind != "dense"]


def _timed(step: EmptyStep) -> tuple[EmptyStep, float]:
    start = time.perf_counter()
    step = step.run()
    return step, time.perf_counter() - start


def _trace(step: EmptyStep, folder: Path, steps: int) -> list[float]:
    """Trace some steps; return their seconds."""
    step = step.run().run()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # each Python call would hide what matters
    seconds = []
    with jax.profiler.trace(folder, profiler_options=options):
        for number in range(steps):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                step, duration = _timed(step)
            seconds.append(duration)
    return seconds
