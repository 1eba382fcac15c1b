"""The files of a data set wherever they lie: unpacked, or in archives as downloaded.

The forms in which files come: folder, zip, tar; each may be read by many threads.
"""

import bisect
import contextlib
import functools
import gzip
import hashlib
import os
import shutil
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

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


_BLOCK = 1 << 20


class Archive(NamedTuple):
    """A file as its publisher gives it.

    Attributes:
        name: file name of the download.
        size: bytes; 0 where the publisher's figure is not known to us.
        digest: SHA-256 or MD5, by its length; "" where it is not known.
        url: from where it can be downloaded without an account; "" if from nowhere.
        holds: what is in it, for messages.
    """

    name: str
    size: int = 0
    digest: str = ""
    url: str = ""
    holds: str = ""


class Tree:
    """A read-only view of a folder and of the known archives in it; threads may share.

    Args:
        path: a folder, unpacked or with archives in it, or a single archive.
        archives: the archives to look for in the folder.
        scratch: an existing folder for archives that must be unpacked to be read.
        verify: compare the archives with their published size and checksum.

    Raises:
        ValueError: naming the archive, if it is not the published one, not whole, or
            no archive; or the path, if nothing is there.
    """

    def __init__(
        self,
        path: Path,
        archives: Sequence[Archive] = (),
        *,
        scratch: Path,
        verify: bool = True,
    ):
        self.path, self._scratch = path, scratch
        known = {archive.name: archive for archive in archives}
        if path.is_dir():
            files = FolderStore(path)
            self._stores: list[tuple[str, Store]] = [("", files)]
            found = [path / n for n in files.names() if Path(n).name in known]
        elif path.is_file():
            self._stores, found = [], [path]
        else:
            raise ValueError(f"{path}: no such file or folder")
        for file in found:
            if verify and file.name in known:
                check_archive(file, known[file.name])
            self._stores.append((file.name, self._opened(file, str(file))))
        self._index = {
            name: store for _, store in reversed(self._stores) for name in store.names()
        }
        self._sorted = sorted(self._index)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __str__(self) -> str:
        inside = [name for name, _ in self._stores if name]
        return f"{self.path}" + (f" (with {', '.join(inside)})" if inside else "")

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            ValueError: naming the file, if it is not there or damaged.
        """
        if name not in self._index:
            raise ValueError(f"{self}: {name} is missing")
        try:
            return self._index[name].read(name)
        except NOT_WHOLE as error:
            raise ValueError(f"{self}: {name} is damaged ({error})") from error

    def lines(self, name: str) -> list[str]:
        """The lines of a text file that are not empty, stripped.

        Raises:
            ValueError: naming the file, if it is not there, damaged, or no text.
        """
        try:
            text = self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}: {name} is no text ({error})") from error
        return [line for raw in text.splitlines() if (line := raw.strip())]

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._index[name].size(name)

    def under(self, folder: str, suffix: str = "") -> list[str]:
        """The files below a folder (`"a/b/"`), sorted, whose names end in `suffix`."""
        start = bisect.bisect_left(self._sorted, folder)
        end = bisect.bisect_left(self._sorted, folder + "\U0010ffff")
        return [n for n in self._sorted[start:end] if n.endswith(suffix)]

    def root(self, marker: str) -> str | None:
        """The shortest prefix, `""` or `"a/b/"`, below which `marker` lies, if any.

        Args:
            marker: a file, `"a/list.txt"`, or a folder, `"a/b/"`.
        """
        inside, folder = f"/{marker}", marker.endswith("/")
        prefixes = [
            name[: f"/{name}".rindex(inside)]
            for name in self._sorted
            if f"/{name}".endswith(inside) or (folder and inside in f"/{name}")
        ]
        return min(prefixes, key=len, default=None)

    def add_inner(self, name: str) -> None:
        """Opens an archive that lies in an archive, so that its files are found too.

        Raises:
            ValueError: naming it, if it is not there or not whole.
        """
        target = self._place(Path(name).name)
        target.write_bytes(self.read(name))
        store = self._opened(target, f"{self}: {name}")
        self._stores.append((Path(name).name, store))
        for inner in store.names():
            self._index.setdefault(inner, store)
        self._sorted = sorted(self._index)

    def _place(self, name: str) -> Path:
        """A file in the scratch folder that no other archive of this tree has."""
        return self._scratch / f"{len(self._stores)}-{name}"

    def _opened(self, file: Path, name: str) -> Store:
        try:
            with file.open("rb") as stream:
                head = stream.read(2)
            if head == b"PK":
                return ZipStore(file)
            return TarStore(self._unzipped(file) if head == b"\x1f\x8b" else file)
        except NOT_WHOLE as error:
            raise ValueError(
                f"{name}: is not a whole zip or tar archive ({error}); "
                "download it again"
            ) from error

    def _unzipped(self, file: Path) -> Path:
        target = self._place(f"{file.name}.tar")
        with gzip.open(file) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, _BLOCK)
        return target


def check_archive(file: Path, archive: Archive) -> None:
    """Compares a file with the published size and checksum.

    Raises:
        ValueError: naming the file and what differs, if something does.
    """
    size = file.stat().st_size
    remedy = "download it again, or give --unverified if it was packed by somebody else"
    if archive.size and size != archive.size:
        raise ValueError(
            f"{file}: has {size} bytes where {archive.size} are published; {remedy}"
        )
    if archive.digest and digest(file, len(archive.digest)) != archive.digest:
        raise ValueError(f"{file}: its checksum is not the published one; {remedy}")


def digest(file: Path, length: int) -> str:
    """The MD5 (`length` 32) or SHA-256 (64) of a file, in hexadecimal digits."""
    status = file.stat()
    return _digest(file, length, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache
def _digest(file: Path, length: int, size: int, *version: int) -> str:
    """The digest of a file as it is now; preparing need not repeat a download's."""
    summary = hashlib.md5(usedforsecurity=False) if length == 32 else hashlib.sha256()
    with (
        file.open("rb") as stream,
        tqdm(
            total=size,
            desc=f"check {file.name}",
            unit="B",
            unit_scale=True,
            leave=False,
            delay=2,
        ) as bar,
    ):
        while block := stream.read(_BLOCK):
            summary.update(block)
            bar.update(len(block))
    return summary.hexdigest()
