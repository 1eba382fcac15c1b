"""Which device holds what: a mesh of data, rows and model, and the arrays on it.

Examples are spread over `data`, the rows of an image's maps over `rows`
(`dilax.runtime.row_shards`), the channels of fc6 and fc7 over `model`. One program runs
on all devices; the compiler inserts the communication.
"""

import math
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dilax.models import DilatedNet
from dilax.models.front_end import VGG
from dilax.runtime.row_shards import RowShards
from dilax.training.config import Config, MeshConfig, StageConfig


def build_mesh(config: MeshConfig, examples: int) -> Mesh:
    """Return all devices as (data, rows, model).

    Args:
        config: how many along each axis.
        examples: that run at once (batch size / accumulate); a multiple of `data`.

    Raises:
        ValueError: naming the number to change, if they do not divide.
    """
    devices = jax.devices()
    inner = config.rows * config.model
    if len(devices) % inner:
        raise ValueError(
            f"--config.mesh.rows={config.rows}, --config.mesh.model={config.model}: "
            f"their product does not divide the {len(devices)} devices"
        )
    groups = len(devices) // inner
    data = config.data or math.gcd(groups, examples)
    if data > groups or groups % data:
        raise ValueError(
            f"--config.mesh.data={data}: there are {len(devices)} devices, "
            f"{groups} for data"
        )
    if examples % data:
        raise ValueError(
            f"--config.mesh.data={data}: does not divide the {examples} examples that "
            "run at once; change batch_size or accumulate"
        )
    used = data * inner
    if used < len(devices) and jax.process_count() > 1:
        raise ValueError(
            f"{examples} examples at once occupy {used} of {len(devices)} devices, "
            "but with several processes all devices must be used: take a batch_size "
            "that data divides, or more --config.mesh.rows"
        )
    if used < len(devices):
        logging.warning(
            "%d examples at once use %d of %d devices: a batch_size / accumulate that "
            "%d divides would use all, or --config.mesh.rows=%d",
            examples,
            used,
            len(devices),
            groups,
            config.rows * groups // data,
        )
    grid = np.array(devices[:used]).reshape(data, config.rows, config.model)
    return Mesh(grid, ("data", "rows", "model"))


class Placement:
    """Where the arrays of a stage are.

    Args:
        config: of the run.
        stage: says how many examples run at once.
        model: the network, whose head may be spread over `model`.

    Raises:
        ValueError: if the mesh does not fit the devices or the batch.

    Attributes:
        mesh: the devices.
        divided: whether parameters are divided over `data`.
    """

    def __init__(self, config: Config, stage: StageConfig, model: DilatedNet):
        self.mesh = build_mesh(config.mesh, stage.batch_size // stage.accumulate)
        self.divided = config.mesh.shard_params
        # fc6 and fc7, the widest layers by far. Residual networks have none.
        front_end = model.front_end
        layers = front_end.layers if isinstance(front_end, VGG) else ()
        self._head = [row.name for row in layers if row.dropout]

    @property
    def data(self) -> int:
        """Number of parts into which the examples that run at once are spread."""
        return self.mesh.shape["data"]

    def shards(self) -> RowShards | None:
        """Return row shards for one trace of the network; None if rows stay whole."""
        return RowShards(self.mesh) if self.mesh.shape["rows"] > 1 else None

    def parameters(self, tree: Any) -> Any:
        """Put parameters, or values that belong to them, on the devices."""
        shardings = self.shardings(tree)
        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)

        def put(x: Any, sharding: NamedSharding) -> jax.Array:
            value = np.asarray(x)  # the same in all processes
            return jax.make_array_from_callback(
                value.shape, sharding, value.__getitem__
            )

        return jax.tree.map(put, tree, shardings)

    def pinned(self, tree: Any) -> Any:
        """Inside jit: keep the tree where `parameters` puts it."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def batch(self, batch: Any) -> Any:
        """Put this process's examples on its devices, as its part of the batch."""
        return jax.make_array_from_process_local_data(self.batch_sharding, batch)

    def gathered(self, tree: Any) -> Any:
        """Inside jit: give each device all parameters that are divided over `data`.

        Otherwise, the compiler would gather the maps of all examples on each device.
        """
        if not self.divided:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree, False))

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch's arrays."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def local(self, tree: Any) -> Any:
        """Return whole copies on one device of this process."""
        leaves = jax.tree.leaves(tree)
        if not all(x.is_fully_replicated for x in leaves):
            whole = NamedSharding(self.mesh, PartitionSpec())
            tree = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def shardings(self, tree: Any, divided: bool = True) -> Any:
        """Return the shardings of parameters, or of values that belong to them.

        Args:
            tree: the values, or their shapes.
            divided: whether over `data`, too, if the mesh's configuration says so.
        """
        divided = divided and self.divided

        def sharding(path: tuple, x: Any) -> NamedSharding:
            return NamedSharding(self.mesh, self._spec(path, np.shape(x), divided))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def _spec(
        self, path: tuple, shape: tuple[int, ...], divided: bool
    ) -> PartitionSpec:
        def divides(axis: str, size: int) -> bool:
            count = self.mesh.shape[axis]
            return count > 1 and size % count == 0

        names = [getattr(key, "key", getattr(key, "name", "")) for key in path]
        axes: list[str | None] = [None] * len(shape)
        for i, layer in enumerate(self._head):
            # Spread the outputs of fc6, then the inputs of fc7: what one layer leaves
            # spread, the next takes spread, and devices communicate once.
            outputs = i % 2 == 0
            split = {"kernel": 3 if outputs else 2, "bias": 0 if outputs else None}
            axis = split.get(names[-1]) if layer in names else None
            if axis is not None and divides("model", shape[axis]):
                axes[axis] = "model"
        if divided:
            free = [i for i, axis in enumerate(axes) if axis is None]
            fits = [i for i in free if divides("data", shape[i])]
            if fits:
                axes[max(fits, key=lambda i: shape[i])] = "data"
        return PartitionSpec(*axes)
