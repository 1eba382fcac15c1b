"""One optimizer step as a pure function: (state, frozen, batch) → (state, metrics)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from dilax.data import DatasetSpec, subtract_mean
from dilax.models import DilatedNet
from dilax.runtime import jit
from dilax.runtime.row_shards import row_shards
from dilax.training.config import StageConfig
from dilax.training.losses import loss_sum
from dilax.training.optimizer import build_optimizer, build_schedule, scale_to_batch
from dilax.training.sharding import Placement
from dilax.training.stage_crf import Params, rnn_logits


@struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
        step: how many were taken.
        params: the trained parameters, with the running statistics among them.
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
    """(trained, frozen) parts of the parameters, by module."""
    chosen = list(params) if stage.trains == "all" else [stage.trains]
    trained = {name: params[name] for name in chosen}
    return trained, {n: p for n, p in params.items() if n not in trained}


def init_state(trained: Params, stage: StageConfig) -> TrainState:
    """The state before the first step."""
    rates = scale_to_batch(stage.optimizer, stage.batch_size)
    optimizer = build_optimizer(rates, stage.steps)
    ema = jax.tree.map(jnp.copy, trained) if stage.ema else {}
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), ema)


def apply_stage(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    params: Params,
    inputs,
    **kw,
):
    """The network's logits of a stage's inputs: images, or the front end's maps."""
    if stage.inputs == "maps":
        return model.apply({"params": params}, inputs, method="from_maps", **kw)
    x = subtract_mean(inputs, spec.mean)
    return model.apply({"params": params}, x, **kw)


def make_train_step(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    seed: int,
    weights: Any = None,
    placement: Placement | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step of a stage; compile it with the state donated.

    The batch is cut into `stage.accumulate` parts; their summed losses and gradients
    are divided once, by the number of pixels (or images) that were summed over in the
    whole batch, so that the parts add up to the gradient of the batch. Dropout is drawn
    from (seed, step, part). Running statistics of batch normalisation move by what each
    part's would be, averaged.

    Args:
        model: the stage's network.
        stage: see there.
        spec: mean pixel and ignore label.
        seed: of the run.
        weights: class weights (k,) or None.
        placement: of the devices; None runs where its arguments are.

    Returns:
        A function of state, frozen parameters and a batch `{"image", "label"}` that
        gives the next state and `{"loss", "gradient_norm", "learning_rate"}`.
    """
    rates = scale_to_batch(stage.optimizer, stage.batch_size)
    optimizer = build_optimizer(rates, stage.steps)
    schedule = build_schedule(rates, stage.steps)
    part_loss = _part_loss(model, stage, spec, weights, placement)

    def step(state: TrainState, frozen: Params, batch: dict[str, jax.Array]):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(part_loss, has_aux=True)

        def part_gradient(part, index):
            key_of_part = jax.random.fold_in(key, index)
            return gradient(state.params, frozen, part, key_of_part)

        parts = jax.tree.map(lambda x: _cut(x, stage.accumulate), batch)
        found, grads = _sum_over(part_gradient, parts, stage.accumulate)
        total, (count, stats) = found
        count = jnp.maximum(count, 1)
        loss, grads = total / count, jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        stats = jax.tree.map(lambda x: x / stage.accumulate, stats)
        params = _with_statistics(optax.apply_updates(state.params, updates), stats)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        ema = _averaged(state, params, stage.ema) if stage.ema else {}
        after = TrainState(state.step + 1, params, opt_state, ema)
        return placement.pinned(after) if placement else after, metrics

    return step


def _part_loss(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    weights: Any,
    placement: Placement | None,
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, Params]]]:
    """A function of (trained, frozen, part of a batch, key): the summed loss.

    Beside it comes the number that it was summed over, and what running statistics
    become.
    """

    def loss(trained, frozen, part, key):
        params, rngs = {**frozen, **trained}, {"dropout": key}
        drops = stage.trains != "crf"  # a frozen network is as it predicts
        shards, inputs, labels = None, part["image"], part["label"]
        if placement and (shards := placement.shards()):
            stride = 1 if stage.inputs == "maps" else model.map_stride
            inputs = shards.spread(inputs, stride)
        options: Any = {"train": drops, "rngs": rngs, "mutable": ["batch_stats"]}
        with row_shards(shards):
            logits, changed = apply_stage(model, stage, spec, params, inputs, **options)
        if stage.crf_kind == "rnn":
            rnn = params["crf"]
            logits = rnn_logits(model, stage, spec, rnn, logits, part["image"])
        more = ((0, 0), (0, logits.shape[1] - labels.shape[1]), (0, 0))
        labels = jnp.pad(labels, more, constant_values=spec.ignore_label)
        found = loss_sum(stage.loss, logits, labels, spec.ignore_label, weights)
        return found.total, (found.number, changed.get("batch_stats", {}))

    return loss


def _averaged(state: TrainState, params: Params, decay: float) -> Params:
    """The moving average after a step; it follows faster while there were few."""
    kept = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda e, p: kept * e + (1 - kept) * p, state.ema, params)


def jit_train_step(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    seed: int,
    placement: Placement | None = None,
) -> Any:
    """The step of `make_train_step`, jitted, its state donated.

    Class weights, or None, are its last argument: as a constant they would make another
    program of it, which a compilation before, on other data, could not stand for.
    """

    def step(state: TrainState, frozen: Params, batch: dict[str, jax.Array], weights):
        make = make_train_step(model, stage, spec, seed, weights, placement)
        return make(state, frozen, batch)

    return jit(step, donate_argnums=0)


def _with_statistics(params: Params, stats: Params) -> Params:
    """The parameters with the running statistics of batch normalisation."""
    changed = traverse_util.flatten_dict(stats)
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | changed)


def _cut(x, parts: int):
    """(b, …) → (b / parts, parts, …), so that each device keeps its own examples."""
    return x.reshape(len(x) // parts, parts, *x.shape[1:])


def _part(parts, index):
    """One of the parts; taken when its index is known, and not before."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False), parts
    )


def _sum_over(function, parts, count: int):
    """Σ function(part, index), one part after the other.

    XLA's CPU backend runs convolutions in the body of a loop many times slower than
    outside, so there, and for a single part, nothing is rolled up. A part then waits
    for the sum of those before, or all would be held at once.
    """
    if count == 1 or jax.default_backend() == "cpu":
        total = function(_part(parts, 0), 0)
        for i in range(1, count):
            index, total = jax.lax.optimization_barrier((jnp.int32(i), total))
            total = jax.tree.map(jnp.add, total, function(_part(parts, index), i))
        return total

    def body(total, index):
        part = function(_part(parts, index), index)
        return jax.tree.map(jnp.add, total, part), None

    shapes = jax.eval_shape(lambda: function(_part(parts, 0), 0))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zero, jnp.arange(count))[0]
