"""Where arrays live: batches split over the devices, parameters on each of them."""

import math
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Placement:
    """Data parallelism over as many devices as divide the examples of a part.

    Args:
        examples: examples that run together (batch size / accumulate).

    Attributes:
        devices: how many.
    """

    def __init__(self, examples: int):
        devices = jax.devices()
        count = math.gcd(len(devices), examples)
        if count < len(devices):
            logging.warning(
                "%d examples at a time use %d of %d devices",
                examples,
                count,
                len(devices),
            )
        self.devices = count
        mesh = Mesh(devices[:count], ("data",))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec("data"))

    def everywhere(self, tree: Any) -> Any:
        """A copy of each array on every device."""
        return jax.device_put(tree, self._whole)

    def split(self, batch: Any) -> Any:
        """The batch's examples spread over the devices."""
        return jax.device_put(batch, self._split)
