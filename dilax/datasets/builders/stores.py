"""The forms in which files come: folder, zip, tar; each may be read by many threads."""

import contextlib
import gzip
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

NOT_WHOLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that zipfile does not have
    RuntimeError,  # an encrypted file
)


def _walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The files below a folder; links are followed, though not in circles."""
    here = os.path.realpath(folder)
    if here in above:
        return
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here))
            elif entry.is_file():
                yield entry.path


class FolderStore:
    """Files as they lie in a folder, however deep."""

    def __init__(self, root: Path):
        self._root = root
        start = len(os.path.join(root, ""))
        self._names = [file[start:] for file in _walk(str(root))]

    def names(self) -> list[str]:
        return self._names

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


class ZipStore:
    """The members of a zip archive."""

    def __init__(self, file: Path):
        self._file = zipfile.ZipFile(file)
        self._lock = threading.Lock()  # ZipFile counts its open members without one

    def names(self) -> list[str]:
        return [name for name in self._file.namelist() if not name.endswith("/")]

    def size(self, name: str) -> int:
        return self._file.getinfo(name).file_size

    def read(self, name: str) -> bytes:
        with self._lock:
            member = self._file.open(name)
        try:
            return member.read()
        finally:
            with self._lock:
                member.close()


_END = bytes(tarfile.BLOCKSIZE)


class TarStore:
    """The files of a tar archive that is not compressed, read where they lie in it."""

    def __init__(self, file: Path):
        with tarfile.open(file, "r:") as tar:
            self._places = {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in tar
                if member.isfile()
            }
            end = tar.offset
        self._file = file.open("rb")
        # tarfile takes damage between two members, or a cut there, for the end.
        if os.pread(self._file.fileno(), tarfile.BLOCKSIZE, end) != _END:
            raise tarfile.ReadError(f"it breaks off at byte {end}")

    def names(self) -> list[str]:
        return list(self._places)

    def size(self, name: str) -> int:
        return self._places[name][1]

    def read(self, name: str) -> bytes:
        offset, size = self._places[name]
        content = os.pread(self._file.fileno(), size, offset)
        if len(content) < size:
            raise EOFError("the archive ends within it")
        return content


Store = FolderStore | ZipStore | TarStore
