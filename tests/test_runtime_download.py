"""Downloads from a server in this process, which misbehaves as requested."""

import errno
import hashlib
import http.server
import os
import shutil
import signal
import threading
import time
from collections import namedtuple

import pytest

from dilax.runtime import download as module
from dilax.runtime.download import WrongFile, download
from dilax.runtime.files import alone

CONTENT = bytes(range(256)) * 4096  # 1 MiB
OTHER = CONTENT[::-1]
DIGESTS = [hashlib.new(name, CONTENT).hexdigest() for name in ("md5", "sha1", "sha256")]
Usage = namedtuple("Usage", "total used free")


class Publisher(http.server.ThreadingHTTPServer):
    """Serves one file, and remembers what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.headers = {"ETag": '"one"'}
        self.ranges, self.announces_size = True, True
        self.drops = []  # after how many bytes to hang up, one number per request
        self.statuses = []  # what to answer instead, one number per request
        self.before_hanging_up = lambda: None
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/set.tar"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are meant to


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range", "")
        server.asked.append(dict(self.headers))
        if server.statuses and (status := server.statuses.pop(0)):
            self.send_error(status)
            return
        tag = self.headers.get("If-Range")
        same = tag is None or tag in server.headers.values()
        start = int(wanted[6:-1]) if wanted and server.ranges and same else 0
        size = len(server.content)
        if start >= size > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if server.announces_size:
            self.send_header("Content-Length", str(size - start))
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        drop = server.drops.pop(0) if server.drops else None
        self.wfile.write(server.content[start:][:drop])
        server.before_hanging_up()


@pytest.fixture
def server():
    with Publisher() as publisher:
        thread = threading.Thread(target=publisher.serve_forever, args=(0.01,))
        thread.start()
        yield publisher
        publisher.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(module, "TIMEOUTS", (2.0, 2.0))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "set.tar"


def left(file):
    names = {path.name for path in file.parent.iterdir()}
    return sorted(names - {f".{file.name}.lock"})


def ranges(server):
    return [headers.get("Range") for headers in server.asked]


@pytest.mark.parametrize("digest", [*DIGESTS, ""])
@pytest.mark.parametrize("size", [0, len(CONTENT)])
def test_a_download_is_the_published_file_and_nothing_else(
    server, tmp_path, digest, size
):
    file = tmp_path / "new/folder/set.tar"
    for _ in range(2):  # the second finds it
        assert download(server.url, file, digest, size) == file
    assert file.read_bytes() == CONTENT
    assert left(file) == ["set.tar"]
    assert ranges(server) == [None]


def test_the_digest_of_a_file_that_cannot_be_verified_is_printed(server, file, caplog):
    partial = file.with_name(f"{file.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.symlink_to(file.with_name("another"))  # which is not written to
    download(server.url, file)
    assert hashlib.sha256(CONTENT).hexdigest() in caplog.text
    assert left(file) == ["set.tar"]


def test_a_wrong_file_that_is_there_is_replaced(server, file):
    file.write_bytes(b"half of it")
    assert download(server.url, file, DIGESTS[0]).read_bytes() == CONTENT


def test_a_broken_connection_is_resumed_however_often_it_gets_further(server, file):
    server.drops = [300_000, 200_001, *[50_000] * 7]
    assert download(server.url, file).read_bytes() == CONTENT
    assert ranges(server)[:3] == [None, "bytes=300000-", "bytes=500001-"]
    assert [h.get("If-Range") for h in server.asked[:2]] == [None, '"one"']
    assert len(server.asked) == 10


def test_a_later_process_resumes(server, file):
    server.drops = [300_000, 0, 0, 0]
    with pytest.raises(OSError, match=r"set\.tar: .*resumes"):
        download(server.url, file)
    assert left(file) == ["set.tar.partial", "set.tar.partial.version"]
    assert file.with_name("set.tar.partial").read_bytes() == CONTENT[:300_000]
    server.asked.clear()
    assert download(server.url, file).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=300000-"]
    assert left(file) == ["set.tar"]


def test_an_interrupt_keeps_what_has_arrived(server, file):
    def interrupt():
        server.before_hanging_up = lambda: None
        partial = file.with_name("set.tar.partial")
        while not partial.exists() or partial.stat().st_size < len(CONTENT):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    server.content, server.drops = 3 * CONTENT, [2_500_000]
    server.before_hanging_up = interrupt
    # A shell's background jobs begin with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        download(server.url, file)
    signal.signal(signal.SIGINT, before)
    assert download(server.url, file).read_bytes() == 3 * CONTENT
    assert int(ranges(server)[1][6:-1]) >= len(CONTENT)


def test_a_server_without_ranges_starts_over(server, file):
    server.ranges, server.drops = False, [300_000]
    assert download(server.url, file).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=300000-"]


@pytest.mark.parametrize(
    "before, after",
    [
        ({"ETag": '"one"'}, {"ETag": '"two"'}),
        (
            {"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"ETag": 'W/"weak"', "Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
    ],
)
def test_a_file_that_changed_between_attempts_is_not_mixed(server, file, before, after):
    server.content, server.headers, server.drops = OTHER, before, [300_000, 0, 0, 0]
    with pytest.raises(OSError):
        download(server.url, file)
    server.content, server.headers = CONTENT, after
    assert download(server.url, file).read_bytes() == CONTENT


def test_without_a_version_the_digest_decides(server, file):
    server.content, server.headers, server.drops = OTHER, {}, [300_000, 0, 0, 0]
    with pytest.raises(OSError):
        download(server.url, file, DIGESTS[0])
    server.content = CONTENT
    with pytest.raises(WrongFile, match=rf"{server.url}: .* does not match"):
        download(server.url, file, DIGESTS[0])
    assert left(file) == []
    assert "If-Range" not in server.asked[-1]


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_partial_file_is_complete_or_too_long(server, file, more):
    file.with_name("set.tar.partial").write_bytes(CONTENT + more)
    assert download(server.url, file, DIGESTS[0]).read_bytes() == CONTENT
    first = f"bytes={len(CONTENT + more)}-"
    assert ranges(server) == ([first, None] if more else [first])


def test_a_wrong_size_is_reported_before_anything_is_downloaded(server, file):
    with pytest.raises(WrongFile, match="has 1048576 bytes instead of the published 7"):
        download(server.url, file, size=7)
    assert left(file) == []


def test_a_size_that_is_not_announced_is_accepted(server, file):
    server.announces_size = False
    assert download(server.url, file).read_bytes() == CONTENT


def test_content_that_a_server_calls_gzip_encoded_stays_compressed(server, file):
    server.headers = {"Content-Encoding": "x-gzip", "Content-Type": "application/x-tar"}
    assert download(server.url, file).read_bytes() == CONTENT
    assert server.asked[0]["Accept-Encoding"] == "identity"


def test_a_web_page_is_refused(server, file):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(OSError, match=rf"a web page; .*save it as {file}"):
        download(server.url, file)
    assert left(file) == []


def test_a_refusal_names_status_address_and_remedy(server, file):
    server.statuses = [404]
    with pytest.raises(OSError, match=rf"{server.url}: .*404.*save it as {file}"):
        download(server.url, file)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again_and_one_that_stays_broken_is_named(server, file):
    server.statuses = [503, 429]
    assert download(server.url, file).read_bytes() == CONTENT
    assert len(server.asked) == 3
    file.unlink()
    server.statuses = [500] * 4
    with pytest.raises(OSError, match=rf"{server.url}: the server answers 500"):
        download(server.url, file)
    assert len(server.asked) == 7


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/set.tar", "http:///set.tar", "set.tar"]
)
def test_addresses_without_a_server_are_named(url, file):
    with pytest.raises(OSError, match=url):
        download(url, file)


def test_space_is_needed_only_for_what_is_missing(server, file, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 600_000))
    with pytest.raises(OSError, match=rf"{server.url}: needs 1\.05MB") as full:
        download(server.url, file)
    assert full.value.errno == errno.ENOSPC
    assert left(file) == []
    file.with_name("set.tar.partial").write_bytes(CONTENT[:500_000])
    assert download(server.url, file).read_bytes() == CONTENT


def test_a_file_that_another_process_downloads_is_refused(server, file):
    with (
        alone(file.with_name(".set.tar.lock"), ""),
        pytest.raises(ValueError, match="another process is downloading it"),
    ):
        download(server.url, file)
    assert download(server.url, file).read_bytes() == CONTENT
