"""The parameters that a network starts with, and their shapes.

Batch normalisation keeps averages beside them: they lie with the parameters, as
`params["batch_stats"]`, so that whatever stores, loads or hands on a network's
parameters has them too.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dilax.models.dilated_net import DilatedNet
from dilax.ops import jit

STATS = "batch_stats"


def init_params(model: DilatedNet, seed: int, channels: int = 3) -> dict[str, Any]:
    """Fresh parameters for images of so many channels, decided by the seed."""
    return jit(_init, static_argnums=(0, 2))(model, jax.random.key(seed), channels)


def param_shapes(model: DilatedNet, channels: int = 3) -> dict[str, Any]:
    """What `init_params` gives, as shapes: nothing is computed."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: _init(model, key, channels))


def network_variables(params: dict[str, Any]) -> dict[str, Any]:
    """What `model.apply` takes, of parameters as `init_params` gives them.

    Example:
        >>> network_variables({"front_end": 1, "batch_stats": 2})
        {'params': {'front_end': 1}, 'batch_stats': 2}
    """
    variables = {"params": {n: p for n, p in params.items() if n != STATS}}
    return {**variables, STATS: params[STATS]} if STATS in params else variables


def _init(model: DilatedNet, key: jax.Array, channels: int) -> dict[str, Any]:
    side = 2 * model.margin + 4 * model.map_stride
    variables = dict(model.init(key, jnp.zeros((1, side, side, channels))))
    return {**variables.pop("params"), **variables}
