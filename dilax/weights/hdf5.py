"""The arrays of an HDF5 file, written out flat by a process that may fail.

    python -P hdf5.py FILE.h5 > FLAT

The HDF5 library follows whatever a file says: broken ones make it reserve memory
without end, or crash. So it runs here, in a process of its own with limits, and never
in the one that loads weights. FLAT is the length of a JSON text in eight bytes,
little-endian; that text, `[[name, layer, shape, dtype, problem], …]`; and the values of
the arrays that have no problem, one after the other.
"""

import contextlib
import json
import math
import os
import sys
from typing import Any, BinaryIO

_SPARE = 512 << 20  # bytes of memory beyond the file's size and what runs already
_SECONDS, _BYTES_PER_SECOND = 60, 20e6
_MOST_EXPANSION = 64  # of compressed values


def flatten(path: str, out: BinaryIO) -> None:
    """Writes the arrays of a file that are weights: names, shapes, values.

    Raises:
        OSError, RuntimeError, ValueError …: whatever HDF5 makes of a broken file.
    """
    import h5py

    with h5py.File(path, "r") as file:
        found: list[Any] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found.append((name, item, _problem(item)))

        file.visititems(visit)
        sound = [item for _, item, problem in found if not problem]
        room = _MOST_EXPANSION * os.path.getsize(path)
        if sum(item.size * item.dtype.itemsize for item in sound) > room:
            raise ValueError("holds more values than a file of its size should")
        about = [
            (
                name,
                _layer_name(item),
                tuple(map(int, item.shape or ())),
                item.dtype.str,
                problem,
            )
            for name, item, problem in found
        ]
        text = json.dumps(about).encode()
        out.write(len(text).to_bytes(8, "little") + text)
        for item in sound:
            out.write(item[()].tobytes())


def _layer_name(item: Any) -> str:
    """The name that Keras 3 gives an array's layer, in an attribute of its group."""
    name = item.parent.attrs.get("name", "")
    return name if isinstance(name, str) else ""


def _problem(item: Any) -> str:
    """Why the values of an array are not to be read; nothing if they are."""
    if item.dtype.kind != "f" or item.dtype.hasobject:
        return f"holds {item.dtype}, not floating-point numbers"
    if item.is_virtual or item.external:
        return "its values lie in another file"
    size = math.prod(item.shape) * item.dtype.itemsize
    chunk = math.prod(item.chunks or item.shape) * item.dtype.itemsize
    held = item.id.get_storage_size()
    if chunk > size:
        return f"{size} bytes lie in chunks of {chunk}"
    if not held or (item.chunks is None and held != size):
        return f"{held} of its {size} bytes are in the file"
    return ""


def _limit(size: int) -> None:
    """Limits this process's memory and time, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        seconds = _SECONDS + int(size / _BYTES_PER_SECOND)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + 2 * size + _SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    import h5py  # noqa: F401  before the limits, which count what it takes

    _limit(os.path.getsize(sys.argv[1]))
    try:
        flatten(sys.argv[1], sys.stdout.buffer)
        sys.stdout.flush()
    except Exception as error:
        sys.exit(str(error)[:500] or type(error).__name__)
