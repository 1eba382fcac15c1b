"""Optimizers and learning-rate schedules, composed from optax."""

import dataclasses
from typing import Any

import jax
import optax

from dilax.training.config import OptimizerConfig
from dilax.weights import matches_layer


def scale_to_batch(config: OptimizerConfig, batch_size: int) -> OptimizerConfig:
    """With the learning rate scaled to a batch, where the configuration asks for it.

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
    """The learning rate of each step.

    Args:
        config: kind, milestones, warm-up.
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
            raise ValueError(f"optimizer.schedule={other!r}: not step, poly or cosine")
    if not config.warmup:
        return base
    return lambda step: base(step) * jax.numpy.minimum(1.0, (step + 1) / config.warmup)


def build_optimizer(
    config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
    """SGD as Caffe runs it, or Adam, with the released multipliers.

    Caffe's momentum buffer holds the learning rate, v ← μ v + η (g + λ w), w ← w − v;
    that of `optax.sgd` does not, and the two differ after the rate changes. Weight
    decay λ is on kernels only; biases move at `bias_multiplier` times the rate, and
    `lr_multipliers` scale it for some layers.

    Args:
        config: see there.
        steps: of the whole stage, for the schedule.

    Raises:
        ValueError: if the optimizer or the schedule is unknown.
    """
    schedule = build_schedule(config, steps)
    decay = optax.add_decayed_weights(config.weight_decay, mask=_leaves("kernel"))
    rate = optax.chain(
        optax.scale_by_learning_rate(schedule, flip_sign=False),
        optax.masked(optax.scale(config.bias_multiplier), _leaves("bias")),
    )
    for layer, multiplier in config.lr_multipliers:
        faster = optax.masked(optax.scale(multiplier), _layers((layer,)))
        rate = optax.chain(rate, faster)
    match config.name:
        case "sgd":
            rule = optax.chain(decay, rate, optax.trace(config.momentum))
        case "adam":
            adam = optax.scale_by_adam(config.momentum, config.beta2)
            rule = optax.chain(adam, decay, rate)
        case other:
            raise ValueError(f"optimizer.name={other!r}: is not 'sgd' or 'adam'")
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(clip, rule, optax.scale(-1.0))


def _leaves(name: str):
    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: getattr(path[-1], "key", None) == name, params
        )

    return mask


def _layers(patterns: tuple[str, ...]):
    def chosen(path: Any, _: Any) -> bool:
        name = "/".join(key.key for key in path)
        return any(matches_layer(pattern, name) for pattern in patterns)

    return lambda params: jax.tree_util.tree_map_with_path(chosen, params)
