"""Ctrl-C and SIGTERM end a run between two steps, after it has saved.

Several processes that run one program: who writes, and what they tell each other.

With one process, all of it is free.

Joining a job of several processes: by flags, or by what the cluster says.
"""

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
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


_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def join_job(values: Any) -> None:
    """Joins the job that the flags name, if they name one; before all use of JAX.

    Raises:
        ValueError: naming a flag that is missing or wrong, or the coordinator that does
            not answer. If other processes stay away, JAX ends this one.
    """
    settings = job_settings(values, os.environ)
    if settings is None:
        return
    if settings.get("process_id"):
        _wait_for_answer(settings["coordinator_address"], values.join_timeout)
    try:
        jax.distributed.initialize(
            **settings, initialization_timeout=values.join_timeout
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "the job could not be joined; name its processes by --coordinator, "
            f"--processes and --process_id ({_first_line(error)})"
        ) from error


def _wait_for_answer(address: str, seconds: int) -> None:
    """JAX would end this process without a word to the point."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"--coordinator={address}: did not answer within --join_timeout="
                    f"{seconds} seconds ({error}); is process 0 running there?"
                ) from error
        time.sleep(0.2)


def job_settings(values: Any, environment: Mapping[str, str]) -> dict | None:
    """Arguments of `jax.distributed.initialize`; None for a process alone.

    Args:
        values: with `coordinator`, `processes`, `process_id` and `distributed`.
        environment: that `--distributed` reads: torchrun's variables, else what JAX
            knows itself (Slurm, TPU pods, GKE, Open MPI).

    Raises:
        ValueError: naming a flag that is missing or wrong.
    """
    if values.coordinator:
        return _by_flags(values)
    for name in ("processes", "process_id"):
        if getattr(values, name) is not None:
            raise ValueError(f"--{name}: takes --coordinator=HOST:PORT, too")
    if not values.distributed:
        return None
    if all(name in environment for name in _TORCHRUN):
        address, port, count, rank = (environment[name] for name in _TORCHRUN)
        local = environment.get("LOCAL_RANK")
        return {
            "coordinator_address": f"{address}:{port}",
            "num_processes": int(count),
            "process_id": int(rank),
            **({"local_device_ids": [int(local)]} if local else {}),
        }
    return {}


def _by_flags(values: Any) -> dict:
    count, index = values.processes, values.process_id
    if count is None or index is None:
        raise ValueError("--coordinator: takes --processes and --process_id, too")
    if not 0 <= index < count:
        raise ValueError(f"--process_id={index}: must be 0 to {count - 1}")
    host, _, port = values.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator={values.coordinator}: must be HOST:PORT")
    return {
        "coordinator_address": values.coordinator,
        "num_processes": count,
        "process_id": index,
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


class Interrupted(Exception):
    """The run was asked to stop and has saved; `signum` is the signal.

    Example:
        >>> import signal
        >>> Interrupted(signal.SIGINT, "stopped and saved").signum == signal.SIGINT
        True
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class Interrupts:
    """Context manager that notes SIGINT and SIGTERM; a second Ctrl-C ends at once.

    In other threads than the main one, where Python sets no handlers, it notes nothing.
    """

    signum = 0

    def __enter__(self) -> "Interrupts":
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
