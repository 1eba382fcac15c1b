"""Files that are written completely or not at all, and locks between processes."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import filelock


@contextlib.contextmanager
def whole_or_not_at_all(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside a file; rename it to the file on success.

    The folder is made. A failure deletes what was written and leaves the old file.

    Args:
        path: the file.
        durable: wait until the content is on disk, so that it survives a power cut.

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
    """Hold a lock file; the system releases it when the process ends, however it ends.

    Args:
        path: the lock file; it is made, and stays.
        refusal: the message if another process holds it.

    Raises:
        ValueError: `refusal`.
        OSError: if the file cannot be written.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise ValueError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def user_cache(name: str) -> Path:
    """Return dilax's folder of this name in `$XDG_CACHE_HOME`, or `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "dilax" / name


def shipped(name: str) -> Path:
    """A folder that comes with dilax: inside the package of a wheel, or in the clone.

    Args:
        name: `"experiments"` or `"pretrained"`.
    """
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
