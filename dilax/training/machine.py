"""What a run runs on, and what it takes there: `machine.json` in the run's folder."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dilax.ops.hosts import is_writer
from dilax.training.metrics import write_text

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_FILE = "machine.json"


def machine() -> dict[str, Any]:
    """Versions, devices and processes of this program.

    Example:
        >>> found = machine()
        >>> found["versions"]["jax"] == jax.__version__, found["processes"]
        (True, 1)
    """
    device = jax.devices()[0]
    return {
        "versions": versions(_PACKAGES),
        "system": platform.platform(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The installed version of Python, dilax and some packages; "" of an absent one.

    Example:
        >>> versions(("numpy", "no-such-thing"))["no-such-thing"]
        ''
    """
    found = {"python": platform.python_version()}
    for name in ("dilax", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # dilax runs uninstalled as well
            found[name] = ""
    return found


def peak_memory() -> dict[str, int]:
    """Bytes held at most so far: by this process, and of the first device's memory.

    What the system or the device does not tell is left out.

    Example:
        >>> all(peak > 1e6 for peak in peak_memory().values())
        True
    """
    found = {}
    if sys.platform != "win32":
        import resource  # not on Windows

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host"] = used if sys.platform == "darwin" else 1024 * used
    told = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in told:
        found["device"] = told["peak_bytes_in_use"]
    return found


def record_stage(workdir: Path, stage: str, **figures: float) -> None:
    """Writes this machine, the peak of memory and figures of a stage that is done."""
    if not is_writer():
        return
    known = read_machine(workdir)
    stages = {**known.get("stages", {}), stage: {"memory": peak_memory(), **figures}}
    record = {**machine(), "stages": stages}
    write_text(workdir / _FILE, json.dumps(record, indent=1) + "\n")


def read_machine(workdir: Path) -> dict[str, Any]:
    """What `record_stage` wrote; nothing of a run that has not come so far.

    Example:
        >>> read_machine(Path("nowhere"))
        {}
    """
    path = workdir / _FILE
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
