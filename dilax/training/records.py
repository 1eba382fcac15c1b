"""What a run reports: a progress bar, `metrics.jsonl`, TensorBoard, `machine.json`."""

import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from dilax.evaluation import Scores
from dilax.runtime.files import whole_or_not_at_all
from dilax.runtime.processes import is_writer
from dilax.training.config import StageConfig
from dilax.training.sharding import Placement


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became infinite or NaN; the message names the step.

    Example:
        >>> raise NonFiniteLoss("stage 'joint', step 7: loss nan")
        Traceback (most recent call last):
            ...
        dilax.training.records.NonFiniteLoss: stage 'joint', step 7: loss nan
    """


class Reporter:
    """Context manager that reports the steps of a stage, on a bar and in files.

    It reads the metrics of each step one step later, so that the device never waits.

    Args:
        workdir: the run's folder.
        stage: the stage.
        start: the step from which the stage continues.
        log_every: steps between lines in `metrics.jsonl`.
    """

    def __init__(self, workdir: Path, stage: StageConfig, start: int, log_every: int):
        self._stage, self._every = stage, log_every
        self._writer = MetricWriter(workdir, stage.name, start)
        self._bar = progress(stage.name, stage.steps, start)
        self._last: tuple[int, dict] | None = None
        self._losses: list[float] = []
        self.begin_timing()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self._writer.close()

    def begin_timing(self) -> None:
        """Time the steps from here, because what came before was not training."""
        self._waited, self._timed, self._since = 0.0, 0, time.perf_counter()

    def next_batch(self, batches: Iterator[Any], placement: Placement) -> Any:
        """Send the next batch to the devices, and time the wait for input."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return placement.batch(batch)

    def add(self, number: int, metrics: dict) -> None:
        """Take the metrics of a step, and report those of the step before."""
        for value in metrics.values():
            value.copy_to_host_async()
        self.catch_up()
        self._last = number, metrics

    def catch_up(self) -> None:
        """Report the last step that was added.

        Raises:
            NonFiniteLoss: if its loss or gradient is not finite.
        """
        if self._last is None:
            return
        (number, metrics), self._last = self._last, None
        values = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            raise NonFiniteLoss(
                f"stage {self._stage.name!r}, step {number}: loss {values['loss']}, "
                f"gradient norm {values['gradient_norm']}. Lower "
                "optimizer.learning_rate or set optimizer.clip, in a new --workdir"
            )
        self._losses.append(values["loss"])
        self._timed += 1
        rate = f"{values['learning_rate']:.1e}"
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", lr=rate, refresh=False)
        self._bar.update()
        if number % self._every == 0 or number == self._stage.steps:
            values["loss"] = sum(self._losses) / len(self._losses)
            self._losses = []
            seconds = time.perf_counter() - self._since
            values["step_seconds"] = seconds / self._timed
            values["input_wait"] = self._waited / seconds
            self.begin_timing()
            self._writer.write(number, values)

    def evaluation(self, number: int, name: str, scores: Scores) -> float:
        """Report an evaluation under the name of its metric; return the mean IoU."""
        self._writer.write(number, {name: scores.mean_iou})
        self._bar.write(
            f"{self._stage.name} step {number}: {name} {scores.mean_iou:.3f}"
        )
        return scores.mean_iou


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and to TensorBoard's event files.

    A run that was killed may have logged steps after its last checkpoint. Their lines
    are removed when the stage resumes, so that every step is there once. Of several
    processes only the first one writes.

    Args:
        workdir: the run's folder.
        stage: name of the stage.
        start: the step from which the stage continues.
    """

    def __init__(self, workdir: Path, stage: str, start: int):
        self._stage = stage
        path = workdir / "metrics.jsonl"
        if not is_writer():
            return
        from tensorboardX import SummaryWriter  # here: it imports PyTorch if it can

        def known(line: str) -> bool:
            try:
                entry = json.loads(line)
            except ValueError:  # cut off when the run was killed
                return False
            return entry["stage"] != stage or entry["step"] <= start

        if path.exists():
            lines = path.read_text("utf-8").splitlines(keepends=True)
            write_text(path, "".join(filter(known, lines)))
        self._file = path.open("a", encoding="utf-8")
        folder = workdir / "tensorboard" / stage
        self._events = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of a step."""
        if not is_writer():
            return
        finite = {n: v if math.isfinite(v) else None for n, v in scalars.items()}
        line = {"stage": self._stage, "step": step, **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if is_writer():
            self._file.close()
            self._events.close()


def progress(title: str, total: int, start: int = 0, unit: str = "step") -> Any:
    """Return a progress bar, which is updated every 10 s if it is not on a terminal."""
    return tqdm(
        total=total,
        initial=start,
        desc=title,
        unit=unit,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
        disable=not is_writer(),
    )


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: under another name first, then renamed.

    Of several processes only the first one writes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "notes.txt"), "whole or not at all")
        ...     Path(folder, "notes.txt").read_text()
        'whole or not at all'
    """
    if is_writer():
        with whole_or_not_at_all(path, durable=True) as partial:
            partial.write_text(text, "utf-8")


def machine() -> dict[str, Any]:
    """Return the versions, devices and processes of this program.

    Example:
        >>> found = machine()
        >>> found["versions"]["jax"] == jax.__version__, found["processes"]
        (True, 1)
    """
    packages = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"
    device = jax.devices()[0]
    return {
        "versions": versions(packages),
        "system": platform.platform(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the installed versions of Python, dilax and some packages; "" if absent.

    Example:
        >>> versions(("numpy", "no-such-thing"))["no-such-thing"]
        ''
    """
    found = {"python": platform.python_version()}
    for name in ("dilax", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # dilax runs without installation, too
            found[name] = ""
    return found


def record_stage(workdir: Path, stage: str, **figures: float) -> None:
    """Write the machine, the peak memory and other figures of a finished stage."""
    if not is_writer():
        return
    memory = {}  # at most so far, in bytes; what the system does not report is missing
    if sys.platform != "win32":
        import resource  # not on Windows

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory["host"] = used if sys.platform == "darwin" else 1024 * used
    reported = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in reported:
        memory["device"] = reported["peak_bytes_in_use"]
    stages = read_machine(workdir).get("stages", {})
    record = {**machine(), "stages": {**stages, stage: {"memory": memory, **figures}}}
    write_text(workdir / "machine.json", json.dumps(record, indent=1) + "\n")


def read_machine(workdir: Path) -> dict[str, Any]:
    """Return what `record_stage` wrote; nothing if no stage is finished.

    Example:
        >>> read_machine(Path("nowhere"))
        {}
    """
    path = workdir / "machine.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
