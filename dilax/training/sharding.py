"""Which device holds what: a mesh of data, rows and model, and the arrays on it.

Examples are spread over `data`, the rows of an image's maps over `rows`
(`dilax.ops.row_shards`), the channels of fc6 and fc7 over `model`. One program runs on
all devices; the compiler puts in what they tell each other.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dilax.models import DilatedNet
from dilax.models.backbone import Backbone
from dilax.models.front_end import VGG
from dilax.runtime.row_shards import RowShards
from dilax.training.config import Config, MeshConfig, StageConfig


def build_mesh(
    config: MeshConfig, examples: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The devices as (data, rows, model).

    Args:
        config: how many along each axis.
        examples: that run together (batch size / accumulate); `data` divides them.
        devices: all by default.

    Raises:
        ValueError: naming the number to change, if they do not divide.
    """
    devices = list(jax.devices() if devices is None else devices)
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
            "run together; change batch_size or accumulate"
        )
    if data < groups:
        _say_idle(examples, data * inner, len(devices))
    grid = np.array(devices[: data * inner]).reshape(data, config.rows, config.model)
    return Mesh(grid, ("data", "rows", "model"))


def _say_idle(examples: int, used: int, devices: int) -> None:
    if jax.process_count() > 1:
        raise ValueError(
            f"{examples} examples at a time occupy {used} of {devices} devices, and "
            "with several processes all must work: take a batch_size that data "
            "divides, or more --config.mesh.rows"
        )
    logging.warning(
        "%d examples at a time use %d of %d devices", examples, used, devices
    )


class Placement:
    """Where the arrays of a stage lie.

    Args:
        config: of the run.
        stage: of which examples run together.
        model: whose head may be spread over `model`.

    Raises:
        ValueError: if the mesh does not fit the devices or the batch.
    """

    def __init__(self, config: Config, stage: StageConfig, model: DilatedNet):
        examples = stage.batch_size // stage.accumulate
        self.mesh = build_mesh(config.mesh, examples)
        self._whole_parameters = not config.mesh.shard_params
        self._head = _head(model.front_end)

    @property
    def data(self) -> int:
        """Parts into which the examples that run together are spread."""
        return self.mesh.shape["data"]

    def shards(self) -> RowShards | None:
        """For one trace of the network; None if every device has all rows."""
        return RowShards(self.mesh) if self.mesh.shape["rows"] > 1 else None

    def parameters(self, tree: Any) -> Any:
        """Parameters, or what has one value for each, on the devices."""
        return jax.tree.map(_placed, tree, self.shardings(tree))

    def pinned(self, tree: Any) -> Any:
        """Inside jit: the same, kept where `parameters` puts it."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def batch(self, batch: Any) -> Any:
        """This process's examples, as its part of the batch of all."""
        sharding = self.batch_sharding
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
            batch,
        )

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of a batch's arrays."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def local(self, tree: Any) -> Any:
        """Whole copies on one device of this process."""
        leaves = jax.tree.leaves(tree)
        if not all(x.is_fully_replicated for x in leaves):
            whole = NamedSharding(self.mesh, PartitionSpec())
            tree = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def shardings(self, tree: Any) -> Any:
        """Of parameters, or of what has one value for each."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: NamedSharding(self.mesh, self._spec(path, np.shape(x))),
            tree,
        )

    def _spec(self, path: tuple, shape: tuple[int, ...]) -> PartitionSpec:
        names = [getattr(key, "key", getattr(key, "name", "")) for key in path]
        axes: list[str | None] = [None] * len(shape)
        split = _split_axis(names, self._head)
        if split is not None and self._divides("model", shape[split]):
            axes[split] = "model"
        if not self._whole_parameters:
            free = [i for i, axis in enumerate(axes) if axis is None]
            fits = [i for i in free if self._divides("data", shape[i])]
            if fits:
                axes[max(fits, key=lambda i: shape[i])] = "data"
        return PartitionSpec(*axes)

    def _divides(self, axis: str, size: int) -> bool:
        count = self.mesh.shape[axis]
        return count > 1 and size % count == 0


def _head(front_end: Backbone) -> list[str]:
    """fc6, fc7: the layers with dropout, widest by far; residual networks have none."""
    if not isinstance(front_end, VGG):
        return []
    return [row.name for row in front_end.layers if row.dropout]


def _split_axis(names: Sequence[str], head: Sequence[str]) -> int | None:
    """The axis of a head layer's parameter to spread: outputs, then inputs, then ….

    So what one layer leaves spread, the next takes spread, and they talk once.
    """
    found = [i for i, name in enumerate(head) if name in names]
    if not found:
        return None
    outputs = found[0] % 2 == 0
    if names[-1] == "kernel":
        return 3 if outputs else 2
    return 0 if outputs and names[-1] == "bias" else None


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    value = np.asarray(x)  # the same in all processes
    return jax.make_array_from_callback(value.shape, sharding, lambda at: value[at])
