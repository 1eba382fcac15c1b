"""What a run will take, measured before it starts: memory, and time for its steps.

Each stage that trains on images is compiled, and runs a step or two on empty images;
its operations are known without.
"""

import time
from typing import Any, NamedTuple

from dilax.datasets import DatasetSpec
from dilax.training.checks import check_config
from dilax.training.config import Config, StageConfig
from dilax.training.empty_step import empty_step, image_stages

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
