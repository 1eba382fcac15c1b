"""What a run will take, measured before it starts: memory, and time for its steps.

Each stage that trains on images is compiled, and runs two steps on empty images.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dilax.datasets import DatasetSpec
from dilax.models import DilatedNet
from dilax.ops import jit
from dilax.training.checks import check_config
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.step import init_state, make_train_step, split_params
from dilax.training.structured import init_stage, label_stride


class Cost(NamedTuple):
    """Of a stage.

    Attributes:
        memory: bytes that a step takes at most, by the compiler's account.
        seconds: that a step takes.
        steps: of the stage.
    """

    memory: int
    seconds: float
    steps: int


def estimate(config: Config, spec: DatasetSpec) -> dict[str, Cost]:
    """The cost of the stages that train on images, by name.

    Loading images, computing maps and evaluating come on top; so do stages that train
    on stored maps, whose steps are short, and searches for a dense CRF's parameters.

    Args:
        config: the run.
        spec: its data set.

    Raises:
        ValueError: for a configuration that cannot train.
    """
    check_config(config)
    return {
        stage.name: _cost(config, spec, stage)
        for stage in config.stages
        if stage.inputs == "images" and stage.crf_kind != "dense"
    }


def _cost(config: Config, spec: DatasetSpec, stage: StageConfig) -> Cost:
    model = build_model(config.model, stage, spec.num_classes)
    params = init_stage(model, stage, spec, config.seed)
    trained, frozen = split_params(params, stage)
    state = init_state(trained, stage)
    step = jit(make_train_step(model, stage, spec, config.seed))
    batch = _empty_batch(model, spec, stage)
    compiled = step.lower(state, frozen, batch).compile()
    account = compiled.memory_analysis()
    memory = account.temp_size_in_bytes + account.argument_size_in_bytes
    times = []
    for _ in range(2):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, frozen, batch))
        times.append(time.perf_counter() - start)
    return Cost(memory + account.output_size_in_bytes, min(times), stage.steps)


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
