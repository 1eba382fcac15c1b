"""One process at a time at what must not be done twice at once."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from absl import logging


@contextlib.contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Holds a lock file; the system frees it when the process ends, however it ends.

    Args:
        path: the lock file; it is made, and stays.
        refusal: what to say if another process holds it.

    Raises:
        ValueError: `refusal`.
        OSError: if the file cannot be written.
    """
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        except OSError as error:
            logging.warning("%s: the file system has no locks (%s)", path, error)
        yield
