"""A stage's training step on empty images: what a run takes, before it has begun."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dilax.datasets import DatasetSpec
from dilax.models import DilatedNet, NetworkCost, network_cost
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.sharding import Placement
from dilax.training.step import init_state, jit_train_step, split_params
from dilax.training.structured import init_stage, label_stride


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
    weighted = config.data.class_weight_power or stage.loss.balance
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
