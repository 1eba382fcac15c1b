"""The files of a data set, unpacked in a folder or in archives as downloaded.

Zip and tar files are read in place, by many threads, and never extracted, so names such
as `../x` and links in archives are harmless. Only gzipped tars are decompressed first.
"""

import bisect
import contextlib
import functools
import gzip
import hashlib
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

_BLOCK = 1 << 20
_LARGEST = 1 << 26  # bytes of an image or a list
_RATIO = 100  # maximum compression of a file; annotations in JSON have about ten
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that zipfile does not have
    RuntimeError,  # an encrypted file
)


class Archive(NamedTuple):
    """A file as its publisher offers it.

    Attributes:
        name: file name of the download.
        size: bytes; 0 if we do not know the published size.
        digest: SHA-256 or MD5 in hexadecimal digits; "" if we do not know it.
        url: address for a download without an account; "" if there is none.
        holds: its contents, for messages.
    """

    name: str
    size: int = 0
    digest: str = ""
    url: str = ""
    holds: str = ""


def check_archive(file: Path, archive: Archive) -> None:
    """Compare a file with the published size and checksum.

    Raises:
        ValueError: naming the file and the difference.
    """
    size = file.stat().st_size
    remedy = "download it again, or give --unverified if somebody else packed it"
    if archive.size and size != archive.size:
        raise ValueError(
            f"{file}: has {size} bytes, not the published {archive.size}; {remedy}"
        )
    algorithm = "md5" if len(archive.digest) == 32 else "sha256"
    found = hashlib.new(algorithm, usedforsecurity=False)
    name = f"check {file.name}"
    with (
        file.open("rb") as raw,
        tqdm.wrapattr(raw, "read", size, desc=name, leave=False, delay=2) as stream,
    ):
        while archive.digest and (block := stream.read(_BLOCK)):
            found.update(block)
    if archive.digest and found.hexdigest() != archive.digest:
        raise ValueError(
            f"{file}: its checksum differs from the published one; {remedy}"
        )


Files = dict[str, tuple[int, Callable[[], bytes]]]  # name → size, and how to read it


class Tree:
    """A read-only view of a folder and of the known archives in it; threads may share.

    Args:
        path: a folder, unpacked or with archives in it, or a single archive.
        archives: the archives to look for in the folder.
        scratch: an existing folder for archives that must be unpacked to be read.
        verify: compare the archives with their published sizes and checksums.

    Raises:
        ValueError: naming the archive, if it is damaged or not the published one; or
            the path, if it does not exist.
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
        self._archives: list[str] = []
        known = {archive.name: archive for archive in archives}
        if path.is_dir():
            self._files = _in_folder(path)
            found = [path / name for name in self._files if Path(name).name in known]
        elif path.is_file():
            self._files, found = {}, [path]
        else:
            raise ValueError(f"{path}: no such file or folder")
        for file in found:
            if verify and file.name in known:
                check_archive(file, known[file.name])
            self._add(file, str(file))
            self._archives.append(file.name)
        self._sorted = sorted(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __str__(self) -> str:
        inside = ", ".join(self._archives)
        return f"{self.path} (with {inside})" if inside else f"{self.path}"

    def read(self, name: str, largest: int = _LARGEST) -> bytes:
        """Read a file.

        Args:
            name: of the file.
            largest: maximum number of bytes.

        Raises:
            ValueError: naming the file, if it is missing, damaged, or larger.
        """
        if name not in self._files:
            raise ValueError(f"{self}: {name} is missing")
        if self.size(name) > largest:
            raise ValueError(
                f"{self}: {name} has {self.size(name)} bytes, more than any file of "
                "the data set"
            )
        try:
            return self._files[name][1]()
        except _DAMAGED as error:
            raise ValueError(f"{self}: {name} is damaged ({error})") from error

    def lines(self, name: str) -> list[str]:
        """Read the lines of a text file, stripped and without empty lines.

        Raises:
            ValueError: naming the file, if it is missing, damaged, or not text.
        """
        try:
            text = self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}: {name} is not text ({error})") from error
        return [line for raw in text.splitlines() if (line := raw.strip())]

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return self._files[name][0]

    def stems(self, folder: str, suffix: str) -> list[str]:
        """List the files below a folder, `"a/b/"`, that end in `suffix`: the rest."""
        start = bisect.bisect_left(self._sorted, folder)
        end = bisect.bisect_left(self._sorted, folder + "\U0010ffff")
        names = (n for n in self._sorted[start:end] if n.endswith(suffix))
        return [name.removeprefix(folder).removesuffix(suffix) for name in names]

    def find(self, name: str) -> str | None:
        """Find a file, `"a/list.txt"`, or a folder, `"a/b/"`, in any folder.

        Returns:
            Its shortest path in the tree, which ends in `name`, or None.
        """
        inside, folder = f"/{name}", name.endswith("/")
        prefixes = [
            path[: f"/{path}".rindex(inside)]
            for path in self._sorted
            if f"/{path}".endswith(inside) or (folder and inside in f"/{path}")
        ]
        return min(prefixes, key=len) + name if prefixes else None

    def add_inner(self, name: str) -> None:
        """Open an archive that is in another archive, and add its files to the tree.

        Raises:
            ValueError: naming it, if it is missing or damaged.
        """
        target = self._scratch_file(Path(name).name)
        target.write_bytes(self.read(name, 1 << 30))
        self._add(target, f"{self}: {name}")
        self._archives.append(Path(name).name)
        self._sorted = sorted(self._files)

    def _scratch_file(self, name: str) -> Path:
        """Return a path in the scratch folder that no other archive uses."""
        return self._scratch / f"{len(self._archives)}-{name}"

    def _add(self, file: Path, name: str) -> None:
        """Add the files of an archive that are not in the tree yet."""
        plain = file
        try:
            with file.open("rb") as stream:
                start = stream.read(2)
            if start == b"\x1f\x8b":
                plain = self._scratch_file(f"{file.name}.tar")
                with gzip.open(file) as packed, plain.open("wb") as target:
                    while block := packed.read(_BLOCK):
                        target.write(block)
                        if target.tell() > _RATIO * file.stat().st_size + _LARGEST:
                            raise EOFError("it unpacks to far more than it should")
            files = _in_zip(file) if start == b"PK" else _in_tar(plain)
        except _DAMAGED as error:
            raise ValueError(
                f"{name}: is not a complete zip or tar archive ({error}); "
                "download it again"
            ) from error
        self._files = files | self._files


def _in_folder(root: Path) -> Files:
    """Return the files in a folder, at any depth.

    Links are followed, but not in circles.
    """
    files: Files = {}

    def read(name: str) -> bytes:
        return (root / name).read_bytes()

    def walk(folder: str, parents: tuple[str, ...] = ()) -> None:
        here = os.path.realpath(folder)
        if here in parents:
            return
        with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    walk(entry.path, (*parents, here))
                elif entry.is_file():
                    name = os.path.relpath(entry.path, root)
                    files[name] = entry.stat().st_size, functools.partial(read, name)

    walk(str(root))
    return files


def _in_zip(file: Path) -> Files:
    archive = zipfile.ZipFile(file)
    lock = threading.Lock()  # ZipFile counts its open members without one

    def read(entry: zipfile.ZipInfo) -> bytes:
        with lock:
            member = archive.open(entry)
        try:
            return member.read()
        finally:
            with lock:
                member.close()

    for entry in archive.infolist():
        if entry.file_size > _RATIO * entry.compress_size + _LARGEST:
            raise zipfile.BadZipFile(f"{entry.filename} unpacks to far too much")
    return {
        entry.filename: (entry.file_size, functools.partial(read, entry))
        for entry in archive.infolist()
        if not entry.is_dir()
    }


def _in_tar(file: Path) -> Files:
    """Return the files in a tar archive that is not compressed."""
    stream = file.open("rb")

    def read(offset: int, size: int) -> bytes:
        content = os.pread(stream.fileno(), size, offset)
        if len(content) < size:
            raise EOFError("the archive ends within it")
        return content

    with tarfile.open(file, "r:") as tar:
        files: Files = {
            member.name.removeprefix("./"): (
                member.size,
                functools.partial(read, member.offset_data, member.size),
            )
            for member in tar
            if member.isfile()
        }
        end = tar.offset
    # tarfile mistakes damage or truncation between two members for the end.
    if os.pread(stream.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it breaks off at byte {end}")
    return files
