"""Several processes that run one program: who writes, and what they tell each other.

With one process, all of it is free.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_writer() -> bool:
    """Whether this is the process that writes what all share, and talks to people."""
    return jax.process_index() == 0


def own_share(items: Sequence[Any]) -> list[Any]:
    """Every n-th of the items, for this of n processes.

    Example:
        >>> own_share("abc")
        ['a', 'b', 'c']
    """
    return list(items[jax.process_index() :: jax.process_count()])


def gathered(value: np.ndarray | float) -> np.ndarray:
    """What all processes have of an array, (n, …): 64-bit numbers, exactly.

    Args:
        value: int64 or float64, of one shape everywhere.
    """
    array = np.asarray(value)
    if jax.process_count() == 1:
        return array[None]
    words = np.frombuffer(array.tobytes(), np.uint32)  # JAX has no 64 bits by default
    every = np.asarray(multihost_utils.process_allgather(words))
    return np.ascontiguousarray(every).view(array.dtype).reshape(-1, *array.shape)


def wait_for_all(name: str) -> None:
    """Returns when every process has come here.

    Args:
        name: of the place, the same in all.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def differing_process(text: str) -> int | None:
    """The first process whose text is not this of process 0, in all processes alike."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int64)
    every = gathered(digest)
    others = np.flatnonzero((every != every[0]).any(1))
    return int(others[0]) if len(others) else None
