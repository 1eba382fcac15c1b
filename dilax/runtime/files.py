"""One process at a time at what must not be done twice at once.

Files that are there whole or not at all, whatever stops their writing.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from absl import logging


@contextlib.contextmanager
def whole_or_not_at_all(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside a file, which becomes the file when all went well.

    Its folder is made. What was written is gone after a failure, which leaves what was
    there before.

    Args:
        path: the file.
        durable: it shall outlive a power cut: wait until it is on disk, then rename.

    Raises:
        OSError: naming the file, if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "new", "notes.txt")
        ...     with whole_or_not_at_all(path) as partial:
        ...         length = partial.write_text("all of it")
        ...     [p.name for p in path.parent.iterdir()]
        ['notes.txt']
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename not in (None, str(partial), str(path.parent)):
            raise
        reason = f"cannot be written ({error.strerror or error})"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


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


def shipped(name: str) -> Path:
    """A folder that comes with dilax: inside the package of a wheel, or in the clone.

    Args:
        name: `"experiments"` or `"pretrained"`.
    """
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
