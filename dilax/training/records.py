"""What a run reports while it trains: a progress bar, metrics.jsonl, TensorBoard.

What a run runs on, and what it takes there: `machine.json` in the run's folder.
"""

import json
import math
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from dilax.runtime.files import whole_or_not_at_all
from dilax.runtime.processes import is_writer

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


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing: under another name first, then renamed.

    Of several processes only the first one writes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "notes.txt"), "whole or not at all")
        ...     Path(folder, "notes.txt").read_text()
        'whole or not at all'
    """
    if not is_writer():
        return
    with whole_or_not_at_all(path, durable=True) as partial:
        partial.write_text(text, "utf-8")


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and to TensorBoard's event files.

    A run that was killed may have logged beyond its last checkpoint; such lines are
    taken away when the stage resumes, so that every step stands there once. Of several
    processes only the first one writes.

    Args:
        workdir: the run's folder.
        stage: name of the stage.
        start: the step from which the stage goes on.
    """

    def __init__(self, workdir: Path, stage: str, start: int):
        self._stage = stage
        self._path = workdir / "metrics.jsonl"
        if not is_writer():
            return
        from tensorboardX import SummaryWriter  # here: it imports PyTorch if it can

        if self._path.exists():
            self._forget_after(start)
        self._file = self._path.open("a", encoding="utf-8")
        folder = workdir / "tensorboard" / stage
        self._events = SummaryWriter(str(folder), purge_step=start + 1)

    def _forget_after(self, step: int) -> None:
        lines = self._path.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if self._is_known(line, step)]
        if kept != lines:
            write_text(self._path, "".join(kept))

    def _is_known(self, line: str, step: int) -> bool:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off when the run was killed
            return False
        return entry["stage"] != self._stage or entry["step"] <= step

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step."""
        if not is_writer():
            return
        finite = {n: v if math.isfinite(v) else None for n, v in scalars.items()}
        line = {"stage": self._stage, "step": step, **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if not is_writer():
            return
        self._file.close()
        self._events.close()


def progress(title: str, total: int, start: int = 0, unit: str = "step") -> Any:
    """A progress bar with rate and time left; every 10 s where nobody watches."""
    return tqdm(
        total=total,
        initial=start,
        desc=title,
        unit=unit,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
        disable=not is_writer(),
    )
