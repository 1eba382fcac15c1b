"""One optimizer step as a pure function: (state, frozen, batch) → (state, metrics).

The optimizers and learning-rate schedules are optax's (paper §4, Appendix A; Caffe).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from dilax.data import DatasetSpec, subtract_mean
from dilax.data.pixels import as_float
from dilax.inference.predictor import log_probabilities
from dilax.models import DilatedNet
from dilax.models.blocks import examples_over
from dilax.runtime import jit
from dilax.runtime.row_shards import row_shards
from dilax.training.build import Params, build_rnn
from dilax.training.config import OptimizerConfig, StageConfig
from dilax.training.losses import loss_sum
from dilax.training.sharding import Placement
from dilax.weights import selects


def scale_to_batch(config: OptimizerConfig, batch_size: int) -> OptimizerConfig:
    """Scale the learning rate to the batch size if `base_batch_size` is given.

    Example:
        >>> sgd = OptimizerConfig(learning_rate=1e-3, base_batch_size=8)
        >>> scale_to_batch(sgd, 32).learning_rate
        0.004
    """
    if not config.base_batch_size:
        return config
    ratio = batch_size / config.base_batch_size
    factor = ratio if config.name == "sgd" else ratio**0.5
    rate = config.learning_rate * factor
    return dataclasses.replace(config, learning_rate=rate, base_batch_size=0)


def build_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate of each step.

    Args:
        config: kind of schedule, milestones, warm-up.
        steps: of the whole stage.

    Raises:
        ValueError: if the kind of schedule is unknown.
    """
    rate = config.learning_rate
    match config.schedule:
        case "step":
            milestones = {int(step): factor for step, factor in config.milestones}
            base = optax.piecewise_constant_schedule(rate, milestones)
        case "poly":
            base = optax.polynomial_schedule(rate, 0.0, 0.9, steps)
        case "cosine":
            base = optax.cosine_decay_schedule(rate, steps)
        case other:
            raise ValueError(
                f"optimizer.schedule={other!r}: must be step, poly, or cosine"
            )
    if not config.warmup:
        return base
    return lambda step: base(step) * jnp.minimum(1.0, (step + 1) / config.warmup)


def build_optimizer(
    config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
    """Return SGD as in Caffe, or Adam, with the learning-rate multipliers.

    Caffe's momentum buffer includes the learning rate: v ← μ v + η (g + λ w),
    w ← w − v. The buffer of `optax.sgd` does not; the two differ once the rate changes.
    Weight decay λ applies to kernels only. Biases have `bias_multiplier` times the
    learning rate, and layers in `lr_multipliers` a multiple of that.

    Args:
        config: the optimizer.
        steps: of the whole stage, for the schedule.

    Raises:
        ValueError: if the optimizer or the schedule is unknown.
    """
    schedule = build_schedule(config, steps)
    kernels = _where(lambda name: name.endswith("kernel"))
    biases = _where(lambda name: name.endswith("bias"))
    decay = optax.add_decayed_weights(config.weight_decay, mask=kernels)
    rate = optax.chain(
        optax.scale_by_learning_rate(schedule, flip_sign=False),
        optax.masked(optax.scale(config.bias_multiplier), biases),
    )
    for layer, multiplier in config.lr_multipliers:
        matches = _where(functools.partial(selects, layer))
        rate = optax.chain(rate, optax.masked(optax.scale(multiplier), matches))
    match config.name:
        case "sgd":
            rule = optax.chain(decay, rate, optax.trace(config.momentum))
        case "adam":
            adam = optax.scale_by_adam(config.momentum, config.beta2)
            rule = optax.chain(adam, decay, rate)
        case other:
            raise ValueError(f"optimizer.name={other!r}: must be sgd or adam")
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(clip, rule, optax.scale(-1.0))


def detach_frozen(config: OptimizerConfig, params: Any) -> Any:
    """Return the parameters, without gradients for those whose learning rate is zero.

    If the first layers are frozen, the backward pass then ends above them.
    """
    layers = [layer for layer, multiplier in config.lr_multipliers if multiplier == 0]
    frozen = _where(lambda name: any(selects(layer, name) for layer in layers))
    return jax.tree.map(
        lambda leaf, stop: jax.lax.stop_gradient(leaf) if stop else leaf,
        params,
        frozen(params),
    )


def _where(test: Callable[[str], bool]) -> Callable[[Any], Any]:
    """Return a mask for optax: parameters whose name, `module/layer/leaf`, passes."""

    def chosen(path: Any, _: Any) -> bool:
        return test("/".join(key.key for key in path))

    return lambda params: jax.tree_util.tree_map_with_path(chosen, params)


@struct.dataclass
class TrainState:
    """The state that a step changes.

    Attributes:
        step: the number of steps taken.
        params: the trained parameters, including running statistics.
        opt_state: the optimizer's state.
        ema: a moving average of `params`; empty if the stage keeps none.
    """

    step: Any
    params: Params
    opt_state: Any
    ema: Params = struct.field(default_factory=dict)

    @property
    def averaged(self) -> Params:
        """The parameters to evaluate with: the moving average, if there is one."""
        return self.ema or self.params


def split_params(params: Params, stage: StageConfig) -> tuple[Params, Params]:
    """Split the parameters by module into (trained, frozen)."""
    chosen = list(params) if stage.trains == "all" else [stage.trains]
    trained = {name: params[name] for name in chosen}
    return trained, {n: p for n, p in params.items() if n not in trained}


def init_state(trained: Params, stage: StageConfig) -> TrainState:
    """Return the state before the first step."""
    rates = scale_to_batch(stage.optimizer, stage.batch_size)
    optimizer = build_optimizer(rates, stage.steps)
    ema = jax.tree.map(jnp.copy, trained) if stage.ema else {}
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), ema)


def make_train_step(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    seed: int,
    placement: Placement | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Build the training step of a stage.

    The batch is divided into `stage.accumulate` parts. Their losses and gradients are
    summed and divided once, by the number of pixels (or images) in the whole batch, so
    that the result is the gradient of the batch. Dropout is drawn from (seed, step,
    part). The new running statistics of batch normalization are the mean of those that
    each part gives.

    Args:
        model: the stage's network.
        stage: the stage.
        spec: mean pixel and ignore label.
        seed: of the run.
        placement: where the arrays are; None leaves them where they are.

    Returns:
        `step(state, frozen, batch, class_weights=None)`, a pure function. `frozen` are
        the other parameters, `batch` is `{"image", "label"}`, `class_weights` is (k,).
        It returns the next state and `{"loss", "gradient_norm", "learning_rate"}`, with
        `stage.log_layers` also `"gradient_norm/front_end/fc6"` and so on.
    """
    rates = scale_to_batch(stage.optimizer, stage.batch_size)
    optimizer = build_optimizer(rates, stage.steps)
    schedule = build_schedule(rates, stage.steps)
    part_loss = _part_loss(model, stage, spec, placement)

    def step(state: TrainState, frozen: Params, batch, class_weights=None):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(part_loss, has_aux=True)
        whole = state.params, frozen
        whole = placement.gathered(whole) if placement else whole

        def part_gradient(part, index):
            part_key = jax.random.fold_in(key, index)
            return gradient(*whole, part, part_key, class_weights)

        # Every n-th example, not n consecutive ones: so each device keeps its own.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, stage.accumulate, *x.shape[1:]), batch
        )
        found, grads = _sum_over(part_gradient, parts, stage.accumulate)
        total, (count, stats) = found
        if placement and placement.divided:
            # Whole gradients: for a part on each device, the compiler would divide the
            # convolutions that compute them into many small ones.
            grads = jax.lax.optimization_barrier(placement.gathered(grads))
        count = jnp.maximum(count, 1)
        loss, grads = total / count, jax.tree.map(lambda g: g / count, grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = traverse_util.flatten_dict(optax.apply_updates(state.params, updates))
        stats = jax.tree.map(lambda x: x / stage.accumulate, stats)
        params |= traverse_util.flatten_dict(stats)
        params = traverse_util.unflatten_dict(params)
        ema: Params = {}
        if stage.ema:  # it follows faster during the first steps
            decay = jnp.minimum(stage.ema, (1 + state.step) / (10 + state.step))
            ema = jax.tree.map(
                lambda e, p: decay * e + (1 - decay) * p, state.ema, params
            )
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        if stage.log_layers:
            metrics |= _layer_norms(grads)
        after = TrainState(state.step + 1, params, opt_state, ema)
        return placement.pinned(after) if placement else after, metrics

    return step


def _layer_norms(grads: Params) -> dict[str, jax.Array]:
    layers: dict[str, list[jax.Array]] = {}
    for path, grad in traverse_util.flatten_dict(grads).items():
        layers.setdefault("/".join(path[:-1]), []).append(grad)
    return {f"gradient_norm/{n}": optax.tree.norm(g) for n, g in layers.items()}


def jit_train_step(*arguments: Any) -> Any:
    """Return the step of `make_train_step`, jitted, with its state donated.

    Class weights are an argument of the step, not a constant in it, so that the program
    is the same for all data, and is found in the compilation cache.
    """
    return jit(make_train_step(*arguments), donate_argnums=0)


def _part_loss(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    placement: Placement | None,
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, Params]]]:
    """Return `loss(trained, frozen, part, key, class_weights)` of a part of a batch.

    It returns the summed loss, and as auxiliary output the number of pixels (or images)
    in the sum and the new running statistics.

    A CRF-RNN trains on the pixels of the crop without its margin: the network's
    probabilities are upsampled as in prediction, the augmented crop is the image, and
    every pixel has a label. Where a crop extends beyond its image, image and
    probabilities are continued by reflection, and labels are ignored.
    """

    def loss(trained, frozen, part, key, class_weights):
        trained = detach_frozen(stage.optimizer, trained)
        params, images, labels = {**frozen, **trained}, part["image"], part["label"]
        options: dict[str, Any] = {
            "train": stage.trains != "crf",  # below a CRF the network is frozen
            "rngs": {"dropout": key},
            "mutable": ["batch_stats"],
        }
        shards, inputs, stride = None, images, model.map_stride
        if stage.inputs == "maps":
            options["method"], stride = "from_maps", 1
        if placement and (shards := placement.shards()):
            inputs = shards.spread(inputs, stride)
        with row_shards(shards), examples_over(placement.data if placement else 1):
            if stage.inputs == "images":
                inputs = subtract_mean(inputs, spec.mean)
            logits, changed = model.apply({"params": params}, inputs, **options)
        if stage.crf and stage.crf.kind == "rnn":
            margin = model.margin
            inside = images[:, margin : -margin or None, margin : -margin or None]
            unary = log_probabilities(logits, model.output_stride)
            rnn = build_rnn(stage.crf, spec.num_classes, spec.scale)
            crf = {"params": params["crf"]}
            logits = rnn.apply(crf, unary, as_float(inside), train=True)
        # Devices that share an image's rows compute some rows below its last.
        below = ((0, 0), (0, logits.shape[1] - labels.shape[1]), (0, 0))
        labels = jnp.pad(labels, below, constant_values=spec.ignore_label)
        found = loss_sum(stage.loss, logits, labels, spec.ignore_label, class_weights)
        return found.total, (found.number, changed.get("batch_stats", {}))

    return loss


def _sum_over(function, parts, count: int):
    """Return Σ function(part, index), computed one part at a time.

    XLA's CPU backend runs convolutions many times more slowly in the body of a loop
    than outside, so on CPUs the loop is unrolled. Each part then has to wait for the
    sum of the previous ones (the barrier); otherwise the activations of all parts would
    be in memory at once.
    """

    def at(index):
        part = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False), parts
        )
        return function(part, index)

    if count == 1 or jax.default_backend() == "cpu":
        total = at(0)
        for i in range(1, count):
            index, total = jax.lax.optimization_barrier((jnp.int32(i), total))
            total = jax.tree.map(jnp.add, total, at(index))
        return total

    shapes = jax.eval_shape(lambda: at(0))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total, index):
        return jax.tree.map(jnp.add, total, at(index)), None

    return jax.lax.scan(add, zero, jnp.arange(count))[0]
