"""Optimizers and learning-rate schedules from optax (paper §4, Appendix A; Caffe)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from dilax.training.config import OptimizerConfig
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
    return lambda step: base(step) * jax.numpy.minimum(1.0, (step + 1) / config.warmup)


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
    for layer, multiplier in config.lr_multipliers:
        if multiplier == 0:
            frozen = _where(functools.partial(selects, layer))(params)
            params = jax.tree.map(
                lambda leaf, stop: jax.lax.stop_gradient(leaf) if stop else leaf,
                params,
                frozen,
            )
    return params


def _where(test: Callable[[str], bool]) -> Callable[[Any], Any]:
    """Return a mask for optax: parameters whose name, `module/layer/leaf`, passes."""

    def chosen(path: Any, _: Any) -> bool:
        return test("/".join(key.key for key in path))

    return lambda params: jax.tree_util.tree_map_with_path(chosen, params)
