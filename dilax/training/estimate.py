"""What a stage's training step costs, measured on empty images before a run begins.

`estimate` compiles the steps and runs them once or twice. `profile` traces some steps
and times every layer on its own, which gives the same table on every backend.
"""

import json
import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from dilax.data import DatasetSpec
from dilax.profiling import NetworkCost, network_cost
from dilax.profiling.layer_costs import (
    layer_figures,
    layer_json,
    layer_table,
    time_layers,
)
from dilax.profiling.roofline import device_memory, device_peak, memory_bytes
from dilax.runtime.files import write_text
from dilax.training.build import build_model, check_config, label_stride, stage_shapes
from dilax.training.config import Config, StageConfig
from dilax.training.sharding import Placement
from dilax.training.step import init_state, jit_train_step, split_params


class Cost(NamedTuple):
    """The cost of a stage.

    Attributes:
        memory: bytes that a step needs on each device, as reported by the compiler.
        room: bytes that a device has; 0 if it does not say.
        seconds: time of a step; 0 if it was not run because it does not fit.
        steps: number of steps in the stage.
        flops: operations of the network in a step, on all devices; 0 if unknown.

    Example:
        >>> str(Cost(memory=90 * 10**9, room=16 * 10**9, seconds=0, steps=9, flops=1))
        'does not fit: 90.00 GB of 16.00; raise accumulate or mesh.rows, or set remat'
    """

    memory: int
    room: int
    seconds: float
    steps: int
    flops: int

    def __str__(self) -> str:
        memory = f"{self.memory / 1e9:.2f} GB"
        memory += f" of {self.room / 1e9:.2f}" if self.room else ""
        if not self.seconds:
            remedy = "raise accumulate or mesh.rows, or set remat"
            return f"does not fit: {memory}; {remedy}"
        return (
            f"{self.steps} steps of {1000 * self.seconds:.3g} ms "
            f"({_speed(self.flops, self.seconds)}), "
            f"{tqdm.format_interval(self.steps * self.seconds)} in all; {memory}"
        )


def _speed(flops: int, seconds: float) -> str:
    if not flops:
        return "operations unknown"
    return f"{flops / 1e9:.3g} GFLOP, {flops / seconds / 1e9:.0f} GFLOP/s"


def estimate(config: Config, spec: DatasetSpec) -> dict[str, Cost]:
    """Return the cost of the stages that train on images, by name.

    A step that does not fit on the device, according to the compiler, is not run. The
    cost does not include loading images, computing maps and evaluating; nor stages that
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
    for stage in filter(_on_images, config.stages):
        planned, room = plan_step(config, spec, stage), device_memory()
        try:
            compiled = planned.compile()
            memory = memory_bytes(compiled)
        except jax.errors.JaxRuntimeError as error:  # from a TPU's compiler
            numbers = r"out of memory.*?([\d.]+)G\b.*?([\d.]+)G\b"
            needs = re.search(numbers, str(error))
            if not needs:
                raise
            memory, room = (int(float(number) * 2**30) for number in needs.groups())
        seconds = 0.0
        if not room or memory <= room:
            run = EmptyRun(compiled, planned.arguments)
            first = run()
            seconds = first if first > 1 else min(first, run())
            del run  # to free its memory
        costs[stage.name] = Cost(memory, room, seconds, stage.steps, planned.flops)
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
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # each Python call would hide what matters
    for stage in filter(_on_images, config.stages):
        step = plan_step(config, spec, stage)
        run = EmptyRun(step.compile(), step.arguments)
        run(), run()
        seconds = []
        with jax.profiler.trace(folder / stage.name, profiler_options=options):
            for number in range(steps):
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    seconds.append(run())
        del run  # to free its memory
        height, width = stage.crop
        median = statistics.median(seconds)
        head = (
            f"Stage {stage.name}, layers on {step.together} of {stage.batch_size} "
            f"images of {width}×{height}, {step.times} times per step.\n{peak}\n"
            f"A step takes {1000 * median:.3g} ms: {_speed(step.flops, median)}"
        )
        figures = layer_figures(
            step.cost, peak, time_layers(step.cost.layers, peak, repeats)
        )
        tables[stage.name] = f"{head}\n\n{layer_table(figures)}\n"
        record = {
            "step_seconds": seconds,
            "peak": peak._asdict(),
            "layers": layer_json(figures),
        }
        write_text(folder / f"{stage.name}.md", tables[stage.name])
        write_text(folder / f"{stage.name}.json", json.dumps(record, indent=1) + "\n")
    return tables


class PlannedStep(NamedTuple):
    """A training step and the shapes of its arguments; nothing is computed.

    Attributes:
        step: the jitted step.
        arguments: shapes and shardings of the state, the frozen parameters, a batch and
            class weights.
        cost: of the network on the images that run together on a device.
        together: the number of these images.
        times: how often that happens in a step, on all devices.
        complete: whether the cost covers all layers; it does not if a network of the
            user's own has layers from outside this package.
    """

    step: Any
    arguments: tuple
    cost: NetworkCost
    together: int
    times: int
    complete: bool

    @property
    def flops(self) -> int:
        """Operations of the network in a step, on all devices; 0 if unknown."""
        return self.cost.total.flops * self.times if self.complete else 0

    def compile(self) -> jax.stages.Compiled:
        """Compile the step; training finds it in the persistent cache, if any."""
        return self.step.lower(*self.arguments).compile()


def plan_step(config: Config, spec: DatasetSpec, stage: StageConfig) -> PlannedStep:
    """Plan the step of a stage, the same program as in training.

    Args:
        config: the run.
        spec: its data set.
        stage: a stage of the run that trains by steps.
    """
    model = build_model(config, stage, spec.num_classes)
    placement = Placement(config, stage, model)
    params = stage_shapes(model, stage, spec)
    trained, frozen = split_params(params, stage)
    state = jax.eval_shape(lambda params: init_state(params, stage), trained)
    maps, margin = stage.inputs == "maps", 2 * model.margin
    stride, channels, dtype = 1, len(spec.mean), jnp.uint8
    if maps:
        stride, margin, dtype = model.map_stride, 0, jnp.float32
        channels = spec.num_classes * model.front_end.duc**2
    height, width = (side // stride for side in stage.crop)
    image = height, width, channels
    cells = [(side - margin) // label_stride(model, stage) for side in stage.crop]
    batch = {
        name: jax.ShapeDtypeStruct(
            (stage.batch_size, *shape), kind, sharding=placement.batch_sharding
        )
        for name, shape, kind in (("image", image, dtype), ("label", cells, jnp.uint8))
    }
    weights = None
    if config.data.class_weight_power:
        weights = jax.ShapeDtypeStruct((spec.num_classes,), jnp.float32)
    state, frozen, weights = (
        jax.tree.map(
            lambda x, sharding: x.update(sharding=sharding),
            tree,
            placement.shardings(tree),
        )
        for tree in (state, frozen, weights)
    )
    times = stage.accumulate * placement.data
    together = stage.batch_size // times
    cost = network_cost(model, (together, *image), [*trained], stage.inputs)
    parts = [params.get(name, {}) for name in ("front_end", "context")[maps:]]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(parts))
    return PlannedStep(
        jit_train_step(model, stage, spec, config.seed, placement),
        (state, frozen, batch, weights),
        cost,
        together,
        times,
        complete=cost.parameters == parameters,
    )


def _on_images(stage: StageConfig) -> bool:
    """Whether a stage trains on images, by steps."""
    return stage.inputs == "images" and stage.crf_kind != "dense"


class EmptyRun:
    """Runs a step on empty images, again and again, and returns the seconds of each.

    Args:
        compiled: the step.
        arguments: shapes and shardings, as of `PlannedStep`.
    """

    def __init__(self, compiled: jax.stages.Compiled, arguments: tuple):
        zeros = jax.jit(
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), arguments),
            out_shardings=jax.tree.map(lambda x: x.sharding, arguments),
        )
        self._compiled, (self.state, *self._rest) = compiled, zeros()

    def __call__(self) -> float:
        start = time.perf_counter()
        after = self._compiled(self.state, *self._rest)
        self.state, _ = jax.block_until_ready(after)
        return time.perf_counter() - start
