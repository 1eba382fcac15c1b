"""Where a training step's time goes: a trace of some steps, and a table of the layers.

The trace shows all that runs, under the names that the compiler gave it; the table
shows every layer compiled by itself, which is the same on every backend.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from dilax.datasets import DatasetSpec
from dilax.report.layer_table import layer_figures, layer_json, layer_table
from dilax.report.layer_times import time_layers
from dilax.report.roofline import Peak, device_peak
from dilax.training import Config, StageConfig, write_text
from dilax.training.empty_step import EmptyStep, empty_step, image_stages


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
