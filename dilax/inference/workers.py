"""Reading, predicting and writing at the same time, in three threads.

The next images are decoded while one is predicted and those before are written. Images
of any size share a limited room in memory: a large one has it for itself.
"""

import contextlib
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dilax.inference.predictor import Predictor
from dilax.runtime.files import whole_or_not_at_all

_ROOM = 100_000_000  # pixels in memory: read, in work, and not yet written
_AHEAD = 4
T = TypeVar("T")


class Outcome(NamedTuple):
    """What became of a job.

    Attributes:
        written: images that were predicted.
        skipped: images whose files were there already.
        problems: what could not be read, one message each.

    Example:
        >>> Outcome(written=2, skipped=1, problems=[]).written
        2
    """

    written: int
    skipped: int
    problems: list[str]


class Task(NamedTuple):
    """An image to predict and what becomes of its label map.

    Attributes:
        image: (h, w, c); what is wrong with it; or None: its files are there already.
        pixels: with which it entered the room.
        write: called with the (h, w) uint8 labels, in a thread, in the tasks' order.
        archive: `.npz` for the class probabilities; None writes none.
    """

    image: np.ndarray | ValueError | None
    pixels: int = 0
    write: Callable[[np.ndarray], None] = lambda labels: None
    archive: Path | None = None


class Room:
    """Counts the pixels in memory, and lets readers wait while there are too many.

    What is larger than the room enters when it is empty. Leaving the context lets all
    in, so that no reader waits for a writer that has stopped.

    Args:
        limit: pixels.
    """

    def __init__(self, limit: int = _ROOM):
        self._limit, self._held, self._open = limit, 0, False
        self._changed = threading.Condition()

    def enter(self, pixels: int) -> None:
        """Waits until there is room."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._open or not self._held or self._held + pixels <= self._limit
                )
            )
            self._held += pixels

    def leave(self, pixels: int) -> None:
        """Makes room."""
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


def ahead(items: Iterator[T], depth: int = _AHEAD) -> Generator[T]:
    """The same items in order, of which up to `depth` are made ahead in a thread."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        try:
            coming = deque(pool.submit(next, items, end) for _ in range(depth))
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(cancel_futures=True)


def run_tasks(
    predictor: Predictor, tasks: Iterator[Task], room: Room, bar: tqdm
) -> Outcome:
    """Predicts and writes every task's image.

    Args:
        predictor: network, parameters, data set.
        tasks: read ahead; whoever makes them enters the room with each image's pixels.
        room: is left with each image written.
        bar: over images; it moves by parts of them.

    Raises:
        OSError: if something cannot be written; what was written before stays.
    """
    written, skipped, problems = 0, 0, []
    with contextlib.closing(ahead(tasks)) as coming, room, _Writer(room) as writer:
        for task in coming:
            if isinstance(task.image, np.ndarray):
                labels = predict_labels(predictor, task.image, task.archive, bar)
                writer.submit(task, labels)
                written += 1
                continue
            room.leave(task.pixels)
            bar.update()
            skipped += task.image is None
            problems += [] if task.image is None else [str(task.image)]
    return Outcome(written, skipped, problems)


class _Writer:
    """Writes label maps in a thread, in order; what goes wrong is raised here.

    After that nothing more is written, however long it takes to be noticed.
    """

    def __init__(self, room: Room):
        self._room, self._pool, self._broken = room, ThreadPoolExecutor(1), False
        self._pending: deque[Future] = deque()

    def submit(self, task: Task, labels: np.ndarray) -> None:
        self._pending.append(self._pool.submit(self._write, task, labels))
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def _write(self, task: Task, labels: np.ndarray) -> None:
        try:
            if not self._broken:
                task.write(labels)
        except BaseException:
            self._broken = True
            raise
        finally:
            self._room.leave(task.pixels)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        """Waits for all, or after an exception for the one that is being written."""
        self._pool.shutdown(cancel_futures=kind is not None)
        for future in self._pending if kind is None else ():
            future.result()


def predict_labels(
    predictor: Predictor,
    image: np.ndarray,
    archive: Path | None = None,
    bar: tqdm | None = None,
) -> np.ndarray:
    """The (h, w) uint8 label map of an image; the probabilities go to disk in bands.

    Args:
        predictor: network, parameters, data set.
        image: (h, w, c).
        archive: `.npz` for the probabilities (h, w, k) float32; None writes none.
        bar: see `run_tasks`.
    """
    labels, y = np.empty(image.shape[:2], np.uint8), 0
    shape = (*labels.shape, predictor.model.num_classes)
    with _npz(archive, shape) as write:
        for band in predictor.bands(image, probabilities=archive is not None):
            write(band)
            part = band if band.ndim == 2 else band.argmax(-1)
            labels[y : y + len(part)] = part
            y += len(part)
            if bar is not None:
                bar.update(len(part) / len(labels))
    return labels


@contextlib.contextmanager
def _npz(path: Path | None, shape: tuple[int, ...]) -> Iterator[Callable]:
    """A function that appends rows to `probabilities` in a file for `numpy.load`."""
    if path is None:
        yield lambda band: None
        return
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with (
        whole_or_not_at_all(path) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda band: file.write(np.asarray(band, "<f4").tobytes())
