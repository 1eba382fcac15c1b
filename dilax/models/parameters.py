"""The parameters that a network starts with, and their shapes."""

from typing import Any

import jax
import jax.numpy as jnp

from dilax.models.dilated_net import DilatedNet
from dilax.ops import jit


def init_params(model: DilatedNet, seed: int, channels: int = 3) -> dict[str, Any]:
    """Fresh parameters for images of so many channels, decided by the seed.

    Example:
        >>> from dilax.models import FrontEnd, Layer
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> init_params(model, seed=0)["front_end"]["conv1"]["kernel"].shape
        (3, 3, 3, 4)
    """
    init = jit(_init, once=True, static_argnums=(0, 2))
    return init(model, jax.random.key(seed), channels)


def param_shapes(model: DilatedNet, channels: int = 3) -> dict[str, Any]:
    """What `init_params` gives, as shapes: nothing is computed.

    Example:
        >>> from dilax.models import dilation8_voc
        >>> param_shapes(dilation8_voc())["front_end"]["fc6"]["kernel"].shape
        (7, 7, 512, 4096)
    """
    key = jax.random.key(0)
    return jax.eval_shape(lambda: _init(model, key, channels))


def _init(model: DilatedNet, key: jax.Array, channels: int) -> dict[str, Any]:
    side = 2 * model.margin + 4 * model.map_stride
    return model.init(key, jnp.zeros((1, side, side, channels)))["params"]
