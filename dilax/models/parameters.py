"""The parameters that a network starts with, and their shapes."""

from typing import Any

import jax
import jax.numpy as jnp

from dilax.models.dilated_net import DilatedNet
from dilax.ops import jit


def init_params(model: DilatedNet, seed: int, channels: int = 3) -> dict[str, Any]:
    """Fresh parameters for images of so many channels, decided by the seed."""
    init = jit(_init, once=True, static_argnums=(0, 2))
    return init(model, jax.random.key(seed), channels)


def param_shapes(model: DilatedNet, channels: int = 3) -> dict[str, Any]:
    """What `init_params` gives, as shapes: nothing is computed."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: _init(model, key, channels))


def _init(model: DilatedNet, key: jax.Array, channels: int) -> dict[str, Any]:
    side = 2 * model.margin + 4 * model.map_stride
    return model.init(key, jnp.zeros((1, side, side, channels)))["params"]
