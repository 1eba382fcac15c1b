"""One optimizer step as a pure function: (state, frozen, batch) → (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dilax.datasets import DatasetSpec
from dilax.input import subtract_mean
from dilax.models import STATS, DilatedNet, network_variables
from dilax.ops import jit
from dilax.training.config import StageConfig
from dilax.training.losses import loss_sum
from dilax.training.optimizer import build_optimizer, build_schedule
from dilax.training.structured import Params, rnn_logits


@struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
        step: how many were taken.
        params: the trained parameters, and the batch statistics of what trains.
        opt_state: of the optimizer.
        ema: a moving average of `params`; empty without one.
    """

    step: Any
    params: Params
    opt_state: Any
    ema: Params = struct.field(default_factory=dict)

    @property
    def averaged(self) -> Params:
        """What the stage evaluates and gives on: the average, where there is one."""
        return self.ema or self.params


def split_params(params: Params, stage: StageConfig) -> tuple[Params, Params]:
    """(trained, frozen) parts of the parameters, by module.

    The averages of batch normalisation follow the front end, which alone has any.
    """
    chosen: list[str] = list(params) if stage.trains == "all" else [stage.trains]
    if stage.trains == "front_end" and STATS in params:
        chosen.append(STATS)
    trained = {name: params[name] for name in chosen}
    return trained, {n: p for n, p in params.items() if n not in trained}


def init_state(trained: Params, stage: StageConfig) -> TrainState:
    """The state before the first step."""
    optimizer = build_optimizer(stage.optimizer, stage.steps)
    ema = jax.tree.map(jnp.copy, trained) if stage.ema else {}
    opt_state = optimizer.init(_learned(trained)[0])
    return TrainState(jnp.zeros((), jnp.int32), trained, opt_state, ema)


def _learned(trained: Params) -> tuple[Params, Params]:
    """(what has gradients, batch statistics) of trained parameters."""
    return {n: p for n, p in trained.items() if n != STATS}, {
        n: p for n, p in trained.items() if n == STATS
    }


def apply_stage(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    params: Params,
    inputs,
    **kw,
):
    """The network's logits of a stage's inputs: images, or the front end's maps."""
    variables = network_variables(params)
    if stage.inputs == "maps":
        return model.apply(variables, inputs, method="from_maps", **kw)
    return model.apply(variables, subtract_mean(inputs, spec.mean), **kw)


def make_train_step(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    seed: int,
    weights: Any = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step of a stage; compile it with the state donated.

    The batch is cut into `stage.accumulate` parts; their summed losses and gradients
    are divided once, by the number of pixels (or images) that were summed over in the
    whole batch, so that the parts add up to the gradient of the batch. Dropout is drawn
    from (seed, step, part). Batch normalisation sees a part alone; its averages take
    the mean of what the parts make of them.

    Args:
        model: the stage's network.
        stage: see there.
        spec: mean pixel and ignore label.
        seed: of the run.
        weights: class weights (k,) or None.

    Returns:
        A function of state, frozen parameters and a batch `{"image", "label"}` that
        gives the next state and `{"loss", "gradient_norm", "learning_rate"}`.
    """
    optimizer = build_optimizer(stage.optimizer, stage.steps)
    schedule = build_schedule(stage.optimizer, stage.steps)

    def part_loss(learned, stats, frozen, part, key):
        params, rngs = {**frozen, **stats, **learned}, {"dropout": key}
        drops = stage.trains != "crf"  # a frozen network is as it predicts
        kw = {"train": drops, "rngs": rngs, "mutable": [*stats]}
        logits, stats = apply_stage(model, stage, spec, params, part["image"], **kw)
        if stage.crf_kind == "rnn":
            rnn = params["crf"]
            logits = rnn_logits(model, stage, spec, rnn, logits, part["image"])
        ignore = spec.ignore_label
        loss = loss_sum(stage.loss, logits, part["label"], ignore, weights)
        return loss.total, (loss.number, stats)

    def step(state: TrainState, frozen: Params, batch: dict[str, jax.Array]):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        learned, stats = _learned(state.params)
        gradient = jax.value_and_grad(part_loss, has_aux=True)

        def part_gradient(part, index):
            key_of_part = jax.random.fold_in(key, index)
            return gradient(learned, stats, frozen, part, key_of_part)

        parts = jax.tree.map(lambda x: _cut(x, stage.accumulate), batch)
        sums = _sum_over(part_gradient, parts, stage.accumulate)
        (total, (count, stats)), grads = sums
        count = jnp.maximum(count, 1)
        loss, grads = total / count, jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, learned)
        params = {
            **optax.apply_updates(learned, updates),
            **jax.tree.map(lambda s: s / stage.accumulate, stats),
        }
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        ema = _averaged(state, params, stage.ema) if stage.ema else {}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return step


def _averaged(state: TrainState, params: Params, decay: float) -> Params:
    """The moving average after a step; it follows faster while there were few."""
    kept = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda e, p: kept * e + (1 - kept) * p, state.ema, params)


def jit_train_step(
    model: DilatedNet, stage: StageConfig, spec: DatasetSpec, seed: int
) -> Any:
    """The step of `make_train_step`, jitted, its state donated.

    Class weights, or None, are its last argument: as a constant they would make another
    program of it, which a compilation before, on other data, could not stand for.
    """

    def step(state: TrainState, frozen: Params, batch: dict[str, jax.Array], weights):
        return make_train_step(model, stage, spec, seed, weights)(state, frozen, batch)

    return jit(step, donate_argnums=0)


def _cut(x, parts: int):
    """(b, …) → (parts, b / parts, …), so that each device keeps its own examples."""
    return jnp.moveaxis(x.reshape(len(x) // parts, parts, *x.shape[1:]), 1, 0)


def _sum_over(function, parts, count: int):
    """Σ function(part, index), one part after the other.

    XLA's CPU backend runs convolutions in the body of a loop many times slower than
    outside, so there, and for a single part, nothing is rolled up.
    """
    if count == 1 or jax.default_backend() == "cpu":
        each = (
            function(jax.tree.map(lambda x, i=i: x[i], parts), i) for i in range(count)
        )
        return functools.reduce(functools.partial(jax.tree.map, jnp.add), each)

    def body(total, part_and_index):
        return jax.tree.map(jnp.add, total, function(*part_and_index)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts), 0)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zero, (parts, jnp.arange(count)))[0]
