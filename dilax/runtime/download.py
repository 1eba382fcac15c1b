"""Downloads: verified by pooch, and resumed after an interruption.

pooch compares digests and moves complete files into place. Its own downloader starts
over after a broken connection; the one here keeps the received part in `FILE.partial`
and requests the rest, in the same process or in a later one.
"""

import functools
import os
import re
import time
from pathlib import Path
from typing import Any

import pooch
import requests
import urllib3
from absl import logging
from tqdm import tqdm

from dilax.runtime.files import alone, check_room

PAUSES = (1.0, 3.0, 9.0)  # seconds before each further attempt
TIMEOUTS = (20.0, 60.0)  # seconds for the connection, and for the next bytes
_BLOCK = 1 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_RESUME = "the same command resumes the download"


class WrongFile(ValueError):
    """The server's file is not the published one."""


class _Broken(Exception):
    """An attempt failed, but the next one may succeed."""


def download(url: str, file: Path, digest: str = "", size: int = 0) -> Path:
    """Download a file unless it is there, or resume an interrupted download.

    Args:
        url: the address.
        file: where to save it; its folder is created.
        digest: MD5, SHA-1, or SHA-256 in hexadecimal digits; "" accepts any content.
        size: in bytes; 0 if it is not known.

    Returns:
        The file, complete and verified.

    Raises:
        WrongFile: if the size or the digest differs; the downloaded file is deleted.
        ValueError: if another process is downloading the file.
        OSError: if the server refuses the file or cannot be reached, or if the disk is
            full; the received part is kept.
    """
    pooch.get_logger().setLevel("WARNING")
    algorithm = {32: "md5", 40: "sha1"}.get(len(digest), "sha256")
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    refusal = f"{file}: another process is downloading it; wait until it has finished"
    with alone(file.with_name(f".{file.name}.lock"), refusal):
        try:
            pooch.retrieve(
                url,
                f"{algorithm}:{digest}" if digest else None,
                file.name,
                file.parent,
                downloader=functools.partial(_fetch, file=file, size=size),
            )
        except requests.RequestException:
            raise  # some of these are ValueErrors
        except ValueError as error:
            raise WrongFile(f"{url}: {error}") from error
    if new and not digest:
        logging.warning(
            "%s: cannot be verified, as no checksum is published; its SHA-256 is %s",
            *(file, pooch.file_hash(str(file))),
        )
    return file


def _fetch(url: str, output: str, _: Any, *, file: Path, size: int) -> None:
    """Download to `output`; pooch calls this.

    An attempt that extends the partial file does not count as a failure.
    """
    partial = file.with_name(f"{file.name}.partial")
    pauses = iter(PAUSES)
    while True:
        before = _size(partial)
        try:
            _attempt(url, partial, size)
            break
        except (
            requests.ConnectionError,
            requests.Timeout,
            urllib3.exceptions.HTTPError,
            _Broken,
        ) as error:
            if _size(partial) > before:
                pauses = iter(PAUSES)
            lost = isinstance(error, requests.ConnectionError)
            reason = "cannot be reached" if lost else error
            pause = next(pauses, None)
            if pause is None:
                raise OSError(f"{url}: {reason}; {_RESUME}") from error
            logging.warning("%s: %s; trying again", url, reason)
            time.sleep(pause)
    _version(partial).unlink(missing_ok=True)
    os.replace(partial, output)


def _attempt(url: str, partial: Path, size: int) -> None:
    """Request the bytes that the partial file lacks, and append them."""
    headers = {"Accept-Encoding": "identity"}
    if partial.is_symlink():  # never write to its target
        partial.unlink()
    if have := _size(partial):
        headers["Range"] = f"bytes={have}-"
        if _version(partial).exists():
            headers["If-Range"] = _version(partial).read_text("utf-8")
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
        start, total = _range(response)
        if response.status_code == 416:
            if have == total:
                return
            partial.unlink(missing_ok=True)
            raise _Broken("the file on the server has changed")
        _check(response, partial.with_suffix(""))
        if start not in (0, have):
            raise _Broken("the server sends another range than the requested one")
        if size and total not in (0, size):
            raise ValueError(f"it has {total} bytes instead of the published {size}")
        check_room(partial.parent, max(total, size) - have, f"{url}: needs")
        if not start:
            _remember_version(response, partial)
        bar = tqdm(
            total=total or None,
            initial=start,
            desc=partial.stem,
            unit="B",
            unit_scale=True,
        )
        with partial.open("ab" if start else "wb") as file, bar:
            # Do not decode: some servers call a .tgz a gzip-encoded .tar.
            while block := response.raw.read(_BLOCK, decode_content=False):
                file.write(block)
                bar.update(len(block))
    if total and _size(partial) != total:
        raise _Broken(f"{_size(partial)} of {total} bytes arrived")


def _range(response: requests.Response) -> tuple[int, int]:
    """The first byte that a response sends, and the size of the whole file, or 0."""
    if response.status_code == 200:
        return 0, int(response.headers.get("Content-Length", 0))
    span = response.headers.get("Content-Range", "")  # bytes 5-9/10, or bytes */10
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", span)
    start, total = found.groups() if found else (None, "*")
    return int(start or -1), 0 if total == "*" else int(total)


def _check(response: requests.Response, file: Path) -> None:
    """Raise an error if a response does not contain the file."""
    answer = f"the server answers {response.status_code} {response.reason}"
    remedy = f"download it with a browser and save it as {file}"
    if response.status_code in _TRANSIENT:
        raise _Broken(answer)
    if response.status_code not in (200, 206):
        raise OSError(f"{response.url}: {answer}; {remedy}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise OSError(f"{response.url}: the server sends a web page; {remedy}")


def _remember_version(response: requests.Response, partial: Path) -> None:
    """Save the headers that tell this file from a later one at the same address."""
    etag = response.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag
    version = strong or response.headers.get("Last-Modified", "")
    _version(partial).unlink(missing_ok=True)
    if version:
        _version(partial).write_text(version, "utf-8")


def _version(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.version")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
