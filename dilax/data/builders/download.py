"""Archives from their publishers: resumable, and checked before they count as there."""

import contextlib
import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3
from absl import logging
from tqdm import tqdm

from dilax.data.builders.archives import Archive, check_archive
from dilax.runtime.files import alone

PAUSES = (1.0, 3.0, 9.0)  # seconds before each further attempt
TIMEOUTS = (20.0, 60.0)  # seconds for the connection, and for the next bytes
_BLOCK = 1 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_GOES_ON = "the same command goes on from here"


class _Dropped(Exception):
    """A connection that may work the next time."""


class _Reply(NamedTuple):
    """Where in the file a reply begins, and the bytes of the whole; 0: not told."""

    start: int
    total: int


def download(archive: Archive, folder: Path) -> Path:
    """Fetches an archive, or goes on where an interrupted download ended.

    Args:
        archive: what to fetch.
        folder: where to put it; it is made.

    Returns:
        The file, whole and checked.

    Raises:
        ValueError: if the archive has no url, the server does not give it, the file is
            not the published one, or another process is downloading it.
        OSError: if the server cannot be reached or the disk is full; what has arrived
            is kept.
    """
    if not archive.url:
        raise ValueError(
            f"{archive.name}: cannot be downloaded without an account "
            f"({archive.holds}); get it and put it into {folder}"
        )
    target = folder / archive.name
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"{target}: another process is downloading it; wait until it is done"
    with alone(folder / f".{archive.name}.lock", refusal):
        if not _is_there(target, archive):
            partial = folder / f"{archive.name}.partial"
            _fetch(archive, partial)
            _check(partial, archive)
            partial.replace(target)
            _validator(partial).unlink(missing_ok=True)
    return target


def _is_there(target: Path, archive: Archive) -> bool:
    if not target.exists():
        return False
    try:
        check_archive(target, archive)
    except ValueError as error:
        logging.warning("%s; it is downloaded again", error)
        return False
    return True


def _check(partial: Path, archive: Archive) -> None:
    try:
        check_archive(partial, archive)
    except ValueError as error:
        _forget(partial)
        raise ValueError(
            f"{archive.url}: what came is not what is published, and is deleted: "
            f"{error}"
        ) from error


def _fetch(archive: Archive, partial: Path) -> None:
    """Attempts until the file is whole; an attempt that gets further is not counted."""
    pauses = iter(PAUSES)
    while True:
        before = _size(partial)
        try:
            return _attempt(archive, partial)
        except _Dropped as error:
            if _size(partial) > before:
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise OSError(f"{archive.url}: {error}; {_GOES_ON}") from error
            logging.warning("%s: %s; trying again", archive.url, error)
            time.sleep(pause)


def _attempt(archive: Archive, partial: Path) -> None:
    """Asks for what is missing and appends it."""
    with _connected(archive.url), _asked(archive.url, partial) as response:
        reply = _understood(response, archive, partial)
        if reply is None:
            return
        _check_space(archive, partial, reply)
        _append(response, partial, reply, archive.name)
    if reply.total and _size(partial) != reply.total:
        raise _Dropped(f"{_size(partial)} of {reply.total} bytes came")


@contextlib.contextmanager
def _connected(url: str) -> Iterator[None]:
    """Tells apart what may pass, what will not, and a full disk."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise OSError(f"{url}: the connection is not secure ({error})") from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Dropped(f"cannot be reached ({error})") from error
    except urllib3.exceptions.HTTPError as error:
        raise _Dropped(f"the connection broke ({error})") from error
    except requests.RequestException as error:
        raise OSError(f"{url}: cannot be fetched ({error})") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno, f"{url}: the disk is full; free some space, then {_GOES_ON}"
        ) from error


def _asked(url: str, partial: Path) -> requests.Response:
    """The reply to the request for what comes after the partial file's bytes."""
    headers = {"Accept-Encoding": "identity"}
    if size := _size(partial):
        headers["Range"] = f"bytes={size}-"
        if _validator(partial).exists():
            headers["If-Range"] = _validator(partial).read_text("utf-8")
    return requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS)


def _understood(
    response: requests.Response, archive: Archive, partial: Path
) -> _Reply | None:
    """What the server sends; None if nothing is missing.

    Raises:
        ValueError: if it does not give the file, or gives one of another size.
    """
    if response.status_code == 416:
        if _size(partial) == _total(response):
            return None
        _forget(partial)
        raise _Dropped("the server's file is another one than it was")
    _check_status(response, archive, partial.parent)
    reply = _reply(response)
    if reply.start not in (0, _size(partial)):
        raise _Dropped(f"the server sends from byte {reply.start}")
    if archive.size and reply.total not in (0, archive.size):
        raise ValueError(
            f"{archive.url}: the server's file has {reply.total} bytes where "
            f"{archive.size} are published"
        )
    return reply


def _check_status(response: requests.Response, archive: Archive, folder: Path) -> None:
    answer = f"the server answers {response.status_code} {response.reason}"
    if response.status_code in _TRANSIENT:
        raise _Dropped(answer)
    if response.status_code not in (200, 206):
        remedy = f"get {archive.name} elsewhere and put it into {folder}"
        raise ValueError(f"{archive.url}: {answer}; {remedy}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        remedy = f"get {archive.name} with a browser and put it into {folder}"
        raise ValueError(f"{archive.url}: the server sends a web page; {remedy}")


def _reply(response: requests.Response) -> _Reply:
    if response.status_code == 200:
        return _Reply(0, int(response.headers.get("Content-Length", 0)))
    span = response.headers.get("Content-Range", "")  # bytes 5-9/10
    start = span.removeprefix("bytes ").partition("-")[0]
    return _Reply(int(start) if start.isdecimal() else -1, _total(response))


def _total(response: requests.Response) -> int:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else 0


def _check_space(archive: Archive, partial: Path, reply: _Reply) -> None:
    need = max(reply.total, archive.size) - reply.start
    there = _size(partial) if reply.start == 0 else 0  # is overwritten
    free = shutil.disk_usage(partial.parent).free + there
    if need > free:
        raise ValueError(
            f"{archive.name}: {need / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB "
            f"are free in {partial.parent}; free some space, then {_GOES_ON}"
        )


def _append(
    response: requests.Response, partial: Path, reply: _Reply, name: str
) -> None:
    """Writes the body undecoded: some servers call a .tgz a gzip-encoded .tar."""
    if reply.start == 0:
        _remember(response, partial)
    with (
        partial.open("ab" if reply.start else "wb") as file,
        tqdm(
            total=reply.total or None,
            initial=reply.start,
            desc=name,
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        while block := response.raw.read(_BLOCK, decode_content=False):
            file.write(block)
            bar.update(len(block))


def _remember(response: requests.Response, partial: Path) -> None:
    """Keeps what tells the server's file from a later one of the same address."""
    etag = response.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag
    if validator := strong or response.headers.get("Last-Modified", ""):
        _validator(partial).write_text(validator, "utf-8")
    else:
        _validator(partial).unlink(missing_ok=True)


def _validator(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.version")


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _validator(partial).unlink(missing_ok=True)


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0
