"""What a run reports while it trains: a progress bar, metrics.jsonl, TensorBoard."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dilax.datasets.writing import whole_or_not_at_all
from dilax.ops.hosts import is_writer


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
