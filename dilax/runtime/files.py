"""Atomic writing of files, and locks between processes."""

import contextlib
import errno
import io
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
from tqdm import tqdm

from dilax.runtime.processes import is_writer


@contextlib.contextmanager
def whole_or_not_at_all(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside a file; rename it to the file on success.

    The folder is created. After a failure, the temporary file is deleted and the old
    file remains. The temporary name cannot be predicted, so nobody can put a link
    there, and two processes may write the same file.

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
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
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


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: to a temporary file, which is then renamed.

    Of several processes, only the first one writes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "notes.txt"), "all or nothing")
        ...     Path(folder, "notes.txt").read_text()
        'all or nothing'
    """
    if is_writer():
        with whole_or_not_at_all(path, durable=True) as partial:
            # File names that are not UTF-8 become escapes, which JSON reads back.
            partial.write_bytes(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which the system releases when the process ends for any reason.

    Args:
        path: the lock file; it is created, and never deleted.
        refusal: the error message if another process holds the lock; the name of that
            process is added to it.

    Raises:
        ValueError: `refusal`.
        OSError: if the file cannot be written.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        holder = path.read_text("utf-8", "replace").split()[:2]  # process and host
        who = f" (process {' on '.join(holder)})" if holder else ""
        raise ValueError(refusal + who) from error
    try:
        if type(lock) is filelock.FileLock:  # the other kinds write this themselves
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", "utf-8")
        yield
    finally:
        lock.release()


def check_room(folder: Path, need: int, what: str) -> None:
    """Check that the disk has room before anything is written.

    Args:
        folder: a folder on that disk.
        need: bytes.
        what: the message before the bytes, such as `"a checkpoint takes up to"`.

    Raises:
        OSError: with both sizes, if there are fewer bytes.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        needed, there = (tqdm.format_sizeof(size, "B") for size in (need, free))
        message = f"{what} {needed}, but {there} are free"
        raise OSError(errno.ENOSPC, message, str(folder))


def printable(text: str) -> str:
    """Return text for a terminal, with control characters in names escaped.

    Example:
        >>> printable("sky\\x1b[2J") == "sky" + chr(92) + "x1b[2J"
        True
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def print_any_name() -> None:
    """Let this process print file names that are not UTF-8, with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def user_cache(name: str) -> Path:
    """Return dilax's folder of this name in `$XDG_CACHE_HOME`, or `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "dilax" / name


def shipped(name: str) -> Path:
    """Return a folder that comes with dilax, in the installed package or in the clone.

    Args:
        name: `"experiments"` or `"pretrained"`.
    """
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
