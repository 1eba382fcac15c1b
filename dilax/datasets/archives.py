"""The files of a data set wherever they lie: unpacked, or in archives as downloaded."""

import bisect
import gzip
import hashlib
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tqdm import tqdm

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


class _Store(Protocol):
    def names(self) -> list[str]: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str) -> bytes: ...


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
            files = _Folder(path)
            self._stores: list[tuple[str, _Store]] = [("", files)]
            found = [path / n for n in files.names() if Path(n).name in known]
        elif path.is_file():
            self._stores, found = [], [path]
        else:
            raise ValueError(f"{path}: no such file or folder")
        for file in found:
            if verify and file.name in known:
                check_archive(file, known[file.name])
            self._stores.append((f"{file}: ", self._opened(file)))
        self._index = {
            name: store for _, store in reversed(self._stores) for name in store.names()
        }
        self._sorted = sorted(self._index)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __str__(self) -> str:
        inside = [Path(where[:-2]).name for where, _ in self._stores if where]
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
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self}: {name} is damaged ({error})") from error

    def lines(self, name: str) -> list[str]:
        """The lines of a text file that are not empty, stripped."""
        text = self.read(name).decode("utf-8-sig")
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
        """Opens an archive that lies in an archive, so that its files are found too."""
        target = self._scratch / Path(name).name
        target.write_bytes(self.read(name))
        store = self._opened(target)
        self._stores.append((f"{target}: ", store))
        for inner in store.names():
            self._index.setdefault(inner, store)
        self._sorted = sorted(self._index)

    def _opened(self, file: Path) -> _Store:
        try:
            if zipfile.is_zipfile(file):
                return _Zip(file)
            with file.open("rb") as stream:
                zipped = stream.read(2) == b"\x1f\x8b"
            return _Tar(self._unzipped(file) if zipped else file)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"{file}: is not a whole zip or tar archive ({error}); "
                "download it again"
            ) from error

    def _unzipped(self, file: Path) -> Path:
        target = self._scratch / f"{file.name}.tar"
        with gzip.open(file) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, _BLOCK)
        return target


class _Folder:
    def __init__(self, root: Path):
        self._root = root
        self._names = [
            (Path(folder) / name).relative_to(root).as_posix()
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
        ]

    def names(self) -> list[str]:
        return self._names

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


class _Zip:
    def __init__(self, file: Path):
        self._file = zipfile.ZipFile(file)

    def names(self) -> list[str]:
        return [name for name in self._file.namelist() if not name.endswith("/")]

    def size(self, name: str) -> int:
        return self._file.getinfo(name).file_size

    def read(self, name: str) -> bytes:
        return self._file.read(name)


class _Tar:
    def __init__(self, file: Path):
        with tarfile.open(file, "r:") as tar:
            self._places = {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in tar
                if member.isfile()
            }
        self._file = file.open("rb")

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
    summary = hashlib.md5(usedforsecurity=False) if length == 32 else hashlib.sha256()
    with (
        file.open("rb") as stream,
        tqdm(
            total=file.stat().st_size,
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
