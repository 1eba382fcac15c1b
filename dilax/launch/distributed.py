"""Joining a job of several processes: by flags, or by what the cluster says."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax

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
