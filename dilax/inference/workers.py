"""Reading, predicting, and writing at the same time, in three threads.

The next images are decoded while one is predicted and earlier ones are written. Images
of any size share a limited amount of memory; a very large one has all of it.
"""

import contextlib
import math
import sys
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dilax.data import scaled_size
from dilax.inference.predictor import Predictor
from dilax.runtime.files import whole_or_not_at_all

_MOST_PIXELS = 100_000_000  # pixels of all images that are read but not yet written
_AHEAD = 4
T = TypeVar("T")


class Outcome(NamedTuple):
    """The result of a job.

    Attributes:
        written: number of predicted images.
        skipped: number of images whose files already existed.
        problems: one message per image that could not be read.
        pixels: class → the number of its pixels in the written predictions.

    Example:
        >>> Outcome(written=2, skipped=1, problems=[]).written
        2
    """

    written: int
    skipped: int
    problems: list[str]
    pixels: dict[int, int] = {}


class Task(NamedTuple):
    """An image to predict, and what to do with its label map.

    Attributes:
        image: (h, w, c); or the error of reading it; or None if its files exist.
        pixels: number of pixels that it reserved in `Memory`.
        write: called with the (h, w) uint8 labels, in a thread, in the tasks' order.
        archive: `.npz` for the class probabilities; None writes none.
    """

    image: np.ndarray | ValueError | None
    pixels: int = 0
    write: Callable[[np.ndarray], None] = lambda labels: None
    archive: Path | None = None


class Memory:
    """Counts the pixels in memory, and makes readers wait while there are too many.

    An image larger than the limit enters when nothing else is in memory. Leaving the
    context lets all readers in, so that none waits for a writer that has stopped.

    Args:
        limit: number of pixels.
    """

    def __init__(self, limit: int = _MOST_PIXELS):
        self._limit, self._held, self._open = limit, 0, False
        self._changed = threading.Condition()

    def enter(self, pixels: int) -> None:
        """Wait until there is space."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._open or not self._held or self._held + pixels <= self._limit
                )
            )
            self._held += pixels

    def leave(self, pixels: int) -> None:
        """Release the space."""
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


def ahead(items: Iterator[T], depth: int = _AHEAD) -> Generator[T]:
    """Yield the items in order; a thread prepares up to `depth` of them ahead."""
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
    predictor: Predictor, tasks: Iterator[Task], memory: Memory, bar: tqdm
) -> Outcome:
    """Predict and write the image of every task.

    Args:
        predictor: network, parameters, data set.
        tasks: the tasks, read ahead; their iterator reserves each image's pixels in
            `memory`.
        memory: released for each image that was written.
        bar: progress bar over images; it moves by fractions of an image.

    Raises:
        OSError: if a file cannot be written; files that were written before are kept.
    """
    written, skipped, problems = 0, 0, []
    pixels, reduced = np.zeros(256, np.int64), False

    def write(task: Task, labels: np.ndarray, before: Future) -> None:
        try:
            before.result()  # after an error, nothing more is written
            task.write(labels)
        finally:
            memory.leave(task.pixels)

    with contextlib.closing(ahead(tasks)) as coming, memory:
        pool = ThreadPoolExecutor(1)
        last: Future = pool.submit(lambda: None)
        try:
            for task in coming:
                if not isinstance(task.image, np.ndarray):
                    memory.leave(task.pixels)
                    bar.update()
                    skipped += task.image is None
                    problems += [] if task.image is None else [str(task.image)]
                    continue
                shape, factor = task.image.shape, predictor.reduction(task.image.shape)
                if not reduced and factor < 1:
                    reduced = True
                    height, width = scaled_size(shape, factor)
                    bar.write(
                        f"images of {shape[1]}x{shape[0]} pixels are reduced to "
                        f"{width}x{height}, about the size of {predictor.spec.name}'s; "
                        "--resize=false predicts them as they are",
                        sys.stderr,
                    )
                labels = _predict(predictor, task.image, task.archive, bar)
                if last.done():
                    last.result()
                last = pool.submit(write, task, labels, last)
                pixels += np.bincount(labels.ravel(), minlength=256)
                written += 1
            last.result()
        finally:
            pool.shutdown(cancel_futures=True)
    counts = {int(i): int(pixels[i]) for i in pixels.nonzero()[0]}
    return Outcome(written, skipped, problems, counts)


def _predict(
    predictor: Predictor, image: np.ndarray, archive: Path | None, bar: tqdm
) -> np.ndarray:
    """Return the (h, w) uint8 label map; write the probabilities to disk in bands."""
    labels, y = np.empty(image.shape[:2], np.uint8), 0
    shape = (*labels.shape, predictor.model.num_classes)
    with _npz(archive, shape) as write:
        for band in predictor.bands(image, probabilities=archive is not None):
            write(band)
            part = band if band.ndim == 2 else band.argmax(-1)
            labels[y : y + len(part)] = part
            y += len(part)
            left = (bar.total or math.inf) - bar.n
            bar.update(min(len(part) / len(labels), left))
    return labels


@contextlib.contextmanager
def _npz(path: Path | None, shape: tuple[int, ...]) -> Iterator[Callable]:
    """Yield a function that appends rows to `probabilities` in an `.npz` file."""
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
