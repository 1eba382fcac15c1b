"""Jobs of several processes: joining a job, exchanging values, and interrupting it.

With a single process, exchanging values costs nothing.
"""

import hashlib
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_writer() -> bool:
    """Whether this is the process that writes shared files and prints."""
    return jax.process_index() == 0


def own_share(items: Sequence[Any]) -> list[Any]:
    """Return this process's share of the items: every n-th one in a job of n.

    Example:
        >>> own_share("abc")
        ['a', 'b', 'c']
    """
    return list(items[jax.process_index() :: jax.process_count()])


def gathered(value: np.ndarray | float) -> np.ndarray:
    """Collect an array of 64-bit numbers from all n processes, exactly: (n, …).

    Args:
        value: int64 or float64, of the same shape in every process.
    """
    array = np.asarray(value)
    if jax.process_count() == 1:
        return array[None]
    words = np.frombuffer(array.tobytes(), np.uint32)  # JAX has no 64 bits by default
    every = np.asarray(multihost_utils.process_allgather(words))
    return np.ascontiguousarray(every).view(array.dtype).reshape(-1, *array.shape)


def wait_for_all(name: str) -> None:
    """Wait until every process has called this.

    Args:
        name: a name for the barrier, the same in every process.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def differing_process(text: str) -> int | None:
    """Return the first process whose text differs from that of process 0, if any."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int64)
    every = gathered(digest)
    others = np.flatnonzero((every != every[0]).any(1))
    return int(others[0]) if len(others) else None


_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def join_job(values: Any) -> None:
    """Join the job given by the flags, if any; call this before any use of JAX.

    Args:
        values: the flags of `job_settings`, and `join_timeout` in seconds.

    Raises:
        ValueError: naming a flag that is missing or wrong, or a coordinator that does
            not answer. If other processes do not join, this process ends with a
            message.
    """
    settings = job_settings(values, os.environ)
    if settings is None:
        return
    seconds = values.join_timeout
    if settings.get("process_id"):
        _wait_for_answer(settings["coordinator_address"], seconds)
    # Otherwise JAX aborts with a trace of its C++ code.
    timer = threading.Timer(
        seconds,
        lambda: leave(
            f"--join_timeout={seconds}: not all processes of the job joined within this"
            " many seconds; start the missing ones, or all of them again"
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**settings, initialization_timeout=seconds + 60)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            "the job could not be joined; set --coordinator, --processes, and "
            f"--process_id ({reason})"
        ) from error
    finally:
        timer.cancel()


def leave(message: str) -> None:
    """End the process with a message, without waiting for the others of its job."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _wait_for_answer(address: str, seconds: int) -> None:
    """Wait for the coordinator: JAX would end this process without a clear message."""
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
    """Return arguments for `jax.distributed.initialize`; None for a single process.

    Args:
        values: the flags `coordinator`, `processes`, `process_id` and `distributed`.
        environment: read if `distributed` is set: torchrun's variables. Without them
            JAX detects Slurm, TPU pods, GKE and Open MPI itself.

    Raises:
        ValueError: naming a flag that is missing or wrong.
    """
    count, index = values.processes, values.process_id
    if values.coordinator:
        if count is None or index is None:
            raise ValueError("--coordinator: give --processes and --process_id, too")
        if not 0 <= index < count:
            raise ValueError(f"--process_id={index}: must be 0 to {count - 1}")
        host, _, port = values.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"--coordinator={values.coordinator}: must be HOST:PORT")
        return {
            "coordinator_address": values.coordinator,
            "num_processes": count,
            "process_id": index,
            **_bind_address(host, values.coordinator),
        }
    for name in ("processes", "process_id"):
        if getattr(values, name) is not None:
            raise ValueError(f"--{name}: give --coordinator=HOST:PORT, too")
    if not values.distributed:
        return None
    if not all(name in environment for name in _TORCHRUN):
        return {}
    address, port, world, rank = (environment[name] for name in _TORCHRUN)
    local = environment.get("LOCAL_RANK")
    return {
        "coordinator_address": f"{address}:{port}",
        "num_processes": int(world),
        "process_id": int(rank),
        **({"local_device_ids": [int(local)]} if local else {}),
    }


def _bind_address(host: str, address: str) -> dict[str, str]:
    """Return the address on which process 0 listens: all addresses, or the given IP.

    A host name may resolve to an address that the machine itself does not know.
    """
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return {}
    return {"coordinator_bind_address": address}


class Interrupted(KeyboardInterrupt):
    """Raised when a run has stopped after a signal, `signum`.

    It is a `KeyboardInterrupt`, so `except Exception` does not catch it.

    Example:
        >>> import signal
        >>> Interrupted(signal.SIGINT, "stopped and saved").signum == signal.SIGINT
        True
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def stop_on_signals() -> None:
    """Let SIGTERM raise `Interrupted`, as SIGINT raises `KeyboardInterrupt`.

    Python drops exceptions that are raised in a destructor or during garbage
    collection; a signal that arrives then is sent again.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum, "stopped; the same command resumes")

    def again(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            return sys.__unraisablehook__(dropped)
        signum = getattr(dropped.exc_value, "signum", signal.SIGINT)
        threading.Timer(0.1, os.kill, (os.getpid(), signum)).start()

    signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = again


class Interrupts:
    """Context manager that records SIGINT and SIGTERM in `signum`.

    A run checks it between two steps, so that it can save first; a second Ctrl-C ends
    the process at once. Outside the main thread, where Python cannot set handlers,
    signals are not recorded.

    Raises:
        Interrupted: at the end of the context, if a signal came that was not handled.
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

    def __exit__(self, kind: type | None, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self.signum and kind is None:
            raise Interrupted(self.signum, "stopped; the same command resumes")
