"""A network on images whose rows lie on several devices: for what one cannot hold."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dilax.models.dilated_net import DilatedNet
from dilax.ops.row_shards import RowShards, row_shards


def row_mesh(rows: int) -> Mesh:
    """The first devices of this process, for `apply_over_rows`.

    Args:
        rows: how many.

    Raises:
        ValueError: if there are not so many.

    Example:
        >>> row_mesh(1).size
        1
    """
    devices = jax.local_devices()
    if not 1 <= rows <= len(devices):
        raise ValueError(f"rows={rows}: there are {len(devices)} devices here")
    return Mesh(np.array(devices[:rows]).reshape(1, rows), ("data", "rows"))


def apply_over_rows(
    model: DilatedNet,
    params: Any,
    x: Float[Array, "b h w c"],
    mesh: Mesh,
    method: str = "__call__",
) -> Float[Array, "b h2 w2 k"]:
    """What the network gives, each of the mesh's `rows` devices computing its rows.

    Each holds about its share of every map; what a convolution needs beyond, devices
    send each other. To be called under `jit`.

    Args:
        model: the network.
        params: its parameters, on all these devices.
        x: images as `model` takes them.
        mesh: with axes `data` and `rows`.
        method: of the network: `"__call__"` or `"maps"`.

    Raises:
        ValueError: if sizes of maps leave open which rows mean something.

    Example:
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> net = DilatedNet(FrontEnd(2, (Layer("conv1", 3, 4),)))
        >>> params, x = init_params(net, 0), jax.numpy.zeros((1, 8, 9, 3))
        >>> jax.jit(lambda p: apply_over_rows(net, p, x, row_mesh(1)))(params).shape
        (1, 6, 7, 2)
    """
    shards = RowShards(mesh)
    with row_shards(shards):
        spread = shards.spread(x, model.map_stride)
        logits: Any = model.apply({"params": params}, spread, method=method)
    return logits[:, : shards.height(logits)]
