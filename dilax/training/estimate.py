"""Where a training step's time goes: a trace of some steps, and a table of the layers.

The trace shows all that runs, under the names that the compiler gave it; the table
shows every layer compiled by itself, which is the same on every backend.

A stage's training step on empty images: what a run takes, before it has begun.

What a run will take, measured before it starts: memory, and time for its steps.

Each stage that trains on images is compiled, and runs a step or two on empty images;
its operations are known without.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dilax.data import DatasetSpec
from dilax.models import DilatedNet
from dilax.profiling import NetworkCost, network_cost
from dilax.profiling.layer_table import (
    layer_figures,
    layer_json,
    layer_table,
    time_layers,
)
from dilax.profiling.roofline import Peak, device_peak
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.records import write_text
from dilax.training.sharding import Placement
from dilax.training.stage_crf import init_stage, label_stride
from dilax.training.step import init_state, jit_train_step, split_params
from dilax.training.validation import check_config


class EmptyStep(NamedTuple):
    """A compiled step and what it runs on; the same program as in training.

    Attributes:
        compiled: takes the state and the rest, and gives a state and metrics.
        state: before the first step; running donates it.
        rest: frozen parameters, a batch, class weights.
        cost: of the network, for the images that run together on a device.
        together: how many these are.
        times: how often that happens in a step, on one device or another.
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
        """After one more step, when it is done."""
        state, _ = jax.block_until_ready(self.compiled(self.state, *self.rest))
        return self._replace(state=state)


def image_stages(config: Config) -> list[StageConfig]:
    """The stages that train on images, whose steps can be run on empty ones."""
    return [s for s in config.stages if s.inputs == "images" and s.crf_kind != "dense"]


def empty_step(config: Config, spec: DatasetSpec, stage: StageConfig) -> EmptyStep:
    """Compiles the step of a stage that trains on images.

    Where a persistent compilation cache is set, training finds it there.

    Args:
        config: the run.
        spec: its data set.
        stage: of the run.
    """
    model = build_model(config, stage, spec.num_classes)
    placement = Placement(config, stage, model)
    params = init_stage(model, stage, spec, config.seed)
    trained, frozen = placement.parameters(split_params(params, stage))
    state = placement.parameters(init_state(trained, stage))
    weighted = config.data.class_weight_power
    weights = jnp.ones(spec.num_classes) if weighted else None
    batch = placement.batch(_empty_batch(model, spec, stage))
    rest = frozen, batch, placement.parameters(weights)
    step = jit_train_step(model, stage, spec, config.seed, placement)
    compiled = step.lower(state, *rest).compile()
    times = stage.accumulate * placement.data
    together = stage.batch_size // times
    shape = (together, *stage.crop, len(spec.mean))
    cost = network_cost(model, shape, [*trained])
    return EmptyStep(compiled, state, rest, cost, together, times)


def _empty_batch(
    model: DilatedNet, spec: DatasetSpec, stage: StageConfig
) -> dict[str, jax.Array]:
    inner = [c - 2 * model.margin for c in stage.crop]
    labels = [i // label_stride(model, stage) for i in inner]
    size = stage.batch_size
    return {
        "image": jnp.zeros((size, *stage.crop, len(spec.mean)), jnp.uint8),
        "label": jnp.zeros((size, *labels), jnp.uint8),
    }


_LONG = 1.0  # seconds, after which a step is not run a second time


class Cost(NamedTuple):
    """Of a stage.

    Attributes:
        memory: bytes that a step takes at most, by the compiler's account.
        seconds: that a step takes.
        steps: of the stage.
        flops: operations of a step in the network.

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
    """The cost of the stages that train on images, by name.

    Loading images, computing maps and evaluating come on top; so do stages that train
    on stored maps, whose steps are short, and searches for a dense CRF's parameters.

    Args:
        config: the run.
        spec: its data set.

    Raises:
        ValueError: for a configuration that cannot train.

    Example:
        >>> from dilax.training.config import build_spec
        >>> from dilax.training.recipes import quickstart
        >>> config = quickstart()
        >>> config.stages = config.stages[:1]
        >>> estimate(config, build_spec(config))["front_end"].steps
        250
    """
    check_config(config)
    return {stage.name: _cost(config, spec, stage) for stage in image_stages(config)}


def _cost(config: Config, spec: DatasetSpec, stage: StageConfig) -> Cost:
    step = empty_step(config, spec, stage)
    account: Any = step.compiled.memory_analysis()
    memory = account.temp_size_in_bytes + account.argument_size_in_bytes
    memory += account.output_size_in_bytes - account.alias_size_in_bytes
    times: list[float] = []
    while not times or (len(times) < 2 and times[0] < _LONG):
        start = time.perf_counter()
        step = step.run()
        times.append(time.perf_counter() - start)
    return Cost(memory, min(times), stage.steps, step.flops)


def profile(
    config: Config, spec: DatasetSpec, folder: Path, steps: int = 3, repeats: int = 3
) -> dict[str, str]:
    """Traces each stage that trains on images, and times its layers.

    Writes `STAGE.md`, `STAGE.json` and the trace, `STAGE/`, which TensorBoard, XProf or
    ui.perfetto.dev show. Steps run on empty images; how long real ones wait for input
    is `input_wait` in a run's metrics.

    Args:
        config: the run.
        spec: its data set.
        folder: for what is written.
        steps: that are traced, after two others.
        repeats: samples of each layer's pass.

    Returns:
        The tables by stage.

    Example:
        >>> import tempfile
        >>> from dilax.training import build_spec, quickstart
        >>> config = quickstart()
        >>> config.stages = config.stages[:1]
        >>> config.stages[0].crop, config.stages[0].batch_size = (38, 38), 1
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spec = build_spec(config)
        ...     list(profile(config, spec, Path(folder), steps=1, repeats=1))
        ['front_end']
    """
    return {
        stage.name: _profile_stage(config, spec, stage, folder, steps, repeats)
        for stage in image_stages(config)
    }


def _profile_stage(
    config: Config,
    spec: DatasetSpec,
    stage: StageConfig,
    folder: Path,
    steps: int,
    repeats: int,
) -> str:
    step = empty_step(config, spec, stage)
    seconds = _trace(step, folder / stage.name, steps)
    peak = device_peak(config.dtype)
    head = _head(stage, step, statistics.median(seconds), peak)
    cost = step.cost
    del step  # and the memory that it takes
    figures = layer_figures(cost, peak, time_layers(cost.layers, peak, repeats))
    text = f"{head}\n\n{layer_table(figures)}\n"
    record: dict[str, Any] = {
        "step_seconds": seconds,
        "peak": peak._asdict(),
        "layers": layer_json(figures),
    }
    write_text(folder / f"{stage.name}.md", text)
    write_text(folder / f"{stage.name}.json", json.dumps(record, indent=1) + "\n")
    return text


def _head(stage: StageConfig, step: EmptyStep, seconds: float, peak: Peak) -> str:
    height, width = stage.crop
    return (
        f"Stage {stage.name}, layers on {step.together} of {stage.batch_size} images "
        f"of {width}×{height}, {step.times} times a step.\n"
        f"{peak}\n"
        f"A step takes {1000 * seconds:.3g} ms: {step.flops / 1e9:.3g} GFLOP, "
        f"{step.flops / seconds / 1e9:.0f} GFLOP/s"
    )


def _trace(step: EmptyStep, folder: Path, steps: int) -> list[float]:
    """Seconds of the steps that were traced."""
    step = step.run().run()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # each Python call would hide what matters
    seconds = []
    with jax.profiler.trace(folder, profiler_options=options):
        for number in range(steps):
            start = time.perf_counter()
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                step = step.run()
            seconds.append(time.perf_counter() - start)
    return seconds
