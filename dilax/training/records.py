"""Reports of a run: a progress bar, `metrics.jsonl`, TensorBoard, `machine.json`."""

import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import jax
import optax
from absl import logging
from tqdm import tqdm

from dilax.evaluation import Scores
from dilax.runtime import jit
from dilax.runtime.files import write_text
from dilax.runtime.processes import is_writer
from dilax.training.config import StageConfig
from dilax.training.sharding import Placement


class NonFiniteLoss(ArithmeticError):
    """The loss, its gradient, or the parameters became infinite or NaN at some step.

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
        start: the step from which the stage resumes.
        log_every: steps between lines in `metrics.jsonl`.
        losses: losses of the steps before `start` that no line has reported.

    Attributes:
        losses: losses of the steps that no line has reported so far.
    """

    def __init__(
        self,
        workdir: Path,
        stage: StageConfig,
        start: int,
        log_every: int,
        losses: tuple[float, ...] = (),
    ):
        self.losses = losses
        self._stage, self._every = stage, log_every
        self._writer = MetricWriter(workdir, stage.name, start)
        self._bar = progress(stage.name, stage.steps, start)
        self._last: tuple[int, dict] | None = None
        self.begin_timing()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self._writer.close()

    def begin_timing(self) -> None:
        """Time the steps from now on, without what was done before."""
        self._waited, self._timed, self._since = 0.0, 0, time.perf_counter()

    def next_batch(self, batches: Iterator[Any], placement: Placement) -> Any:
        """Send the next batch to the devices, and time the wait for input."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return placement.batch(batch)

    def add(self, number: int, metrics: dict) -> None:
        """Take the metrics of a step, and report those of the previous step."""
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
            self._fail(
                number,
                f"loss {values['loss']}, gradient norm {values['gradient_norm']}",
            )
        self.losses += (values["loss"],)
        self._timed += 1
        rate = f"{values['learning_rate']:.1e}"
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", lr=rate, refresh=False)
        self._bar.update()
        if number % self._every == 0 or number == self._stage.steps:
            values["loss"] = sum(self.losses) / len(self.losses)
            if not any(self.losses):
                logging.warning(
                    "stage %r, step %d: the last %d batches have no labelled pixel: "
                    "are all labels of the training split ignored?",
                    *(self._stage.name, number, len(self.losses)),
                )
            self.losses = ()
            seconds = time.perf_counter() - self._since
            values["step_seconds"] = seconds / self._timed
            values["input_wait"] = self._waited / seconds
            self.begin_timing()
            self._writer.write(number, values)

    def check_parameters(self, number: int, params: Any) -> None:
        """Check that the parameters after a step can be saved.

        Raises:
            NonFiniteLoss: if their norm is not finite in float32.
        """
        norm = float(jit(optax.tree.norm)(params))
        if not math.isfinite(norm):
            self._fail(number, f"norm of the parameters {norm}")

    def _fail(self, number: int, found: str) -> NoReturn:
        if last := ", ".join(f"{loss:.4g}" for loss in self.losses[-5:]):
            found += f", after losses {last}"
        raise NonFiniteLoss(
            f"stage {self._stage.name!r}, step {number}: {found}. Lower "
            "optimizer.learning_rate, or set optimizer.clip or optimizer.warmup, in a "
            "new --workdir"
        )

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
    are removed when the stage resumes, so that no step occurs twice. Of several
    processes only the first one writes.

    Args:
        workdir: the run's folder.
        stage: name of the stage.
        start: the step from which the stage resumes.
    """

    def __init__(self, workdir: Path, stage: str, start: int):
        self._stage = stage
        if not is_writer():
            return
        # Imported here, because it imports PyTorch if it can. Not its SummaryWriter,
        # which loses what its thread has not written when the process is killed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [
                json.dumps(entry) + "\n"
                for entry in read_metrics(workdir)
                if entry["stage"] != stage or entry["step"] <= start
            ]
            write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        folder = workdir / "tensorboard" / stage
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), f".{start}")
        resumed = SessionLog(status=SessionLog.START)  # hides later entries
        self._events.write_event(Event(step=start + 1, session_log=resumed))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of a step."""
        if not is_writer():
            return
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        finite = {n: v if math.isfinite(v) else None for n, v in scalars.items()}
        line = {"stage": self._stage, "step": step, **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            event = Event(
                step=step, wall_time=time.time(), summary=summary.scalar(name, value)
            )
            self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        """Close the files."""
        if is_writer():
            self._file.close()
            self._events.close()


def progress(title: str, total: int, start: int = 0, unit: str = "step") -> Any:
    """Return a progress bar; outside a terminal it is updated every 10 s."""
    return tqdm(
        total=total,
        initial=start,
        desc=title,
        unit=unit,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
        disable=not is_writer(),
    )


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
    memory = {}  # peaks so far, in bytes, as far as the system reports them
    if sys.platform != "win32":
        import resource  # not on Windows

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory["host"] = used if sys.platform == "darwin" else 1024 * used
    reported = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in reported:
        memory["device"] = reported["peak_bytes_in_use"]
    try:
        stages = read_machine(workdir).get("stages", {})
    except ValueError as error:  # not a reason to end the training
        logging.warning("%s", error)
        stages = {}
    record = {**machine(), "stages": {**stages, stage: {"memory": memory, **figures}}}
    write_text(workdir / "machine.json", json.dumps(record, indent=1) + "\n")


def read_machine(workdir: Path) -> dict[str, Any]:
    """Return what `record_stage` wrote; nothing if no stage is finished.

    Raises:
        ValueError: naming the file, if it is damaged.

    Example:
        >>> read_machine(Path("nowhere"))
        {}
    """
    path = workdir / "machine.json"
    found = read_record(path, "delete it; it contains no results")
    stages = found.get("stages", {})
    if not isinstance(stages, dict) or not all(
        isinstance(figures, dict) and isinstance(figures.get("memory"), dict)
        for figures in stages.values()
    ):
        raise ValueError(f"{path}: is damaged; delete it; it contains no results")
    return found


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the entries of `metrics.jsonl`, without lines that are not entries.

    The last line is cut off if the run is writing it, or was killed.
    """
    path = workdir / "metrics.jsonl"
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    entries, broken = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entry = json.loads(line)
            values = [v for k, v in entry.items() if k != "stage" and v is not None]
            sound = isinstance(entry["stage"], str) and type(entry["step"]) is int
            if not sound or {type(v) for v in values} - {int, float}:
                raise ValueError
            entries.append(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            broken.append(number)
    if broken and (len(broken) > 1 or text.endswith("\n")):
        logging.warning("%s: lines %s are damaged and ignored", path, broken[:10])
    return entries


def read_record(path: Path, remedy: str, kind: type = dict) -> Any:
    """Read a JSON object, or an array; return an empty one if there is no file.

    Raises:
        ValueError: naming the file and the remedy, if it is something else.
    """
    if not path.exists():
        return kind()
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, kind):
            raise ValueError(f"it contains {str(found)[:60]!r}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged ({error}); {remedy}") from error
    return found
