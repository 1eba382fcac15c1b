"""Downloads from a server in this process, which misbehaves as told."""

import errno
import fcntl
import hashlib
import http.server
import threading
from collections import namedtuple

import pytest

from dilax.data.builders import download as module
from dilax.data.builders.archives import Archive
from dilax.data.builders.download import download

CONTENT = bytes(range(256)) * 4096  # 1 MiB
OTHER = CONTENT[::-1]
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Usage = namedtuple("Usage", "total used free")


class Publisher(http.server.ThreadingHTTPServer):
    """Serves one file, and remembers what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.headers = {"ETag": '"one"'}
        self.ranges, self.told_length = True, True
        self.drops = []  # after how many bytes to hang up, a number a request
        self.statuses = []  # what to answer instead, a number a request
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
        if server.told_length:
            self.send_header("Content-Length", str(size - start))
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        drop = server.drops.pop(0) if server.drops else None
        self.wfile.write(server.content[start:][:drop])


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


def archive(server, **facts):
    return Archive(**{"name": "set.tar", "digest": SHA256, "url": server.url, **facts})


def left(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def ranges(server):
    return [headers.get("Range") for headers in server.asked]


@pytest.mark.parametrize("digest", [MD5, SHA256, ""])
@pytest.mark.parametrize("size", [0, len(CONTENT)])
def test_a_download_is_the_published_file_and_nothing_else(
    server, tmp_path, digest, size
):
    folder = tmp_path / "new" / "folder"
    path = download(archive(server, digest=digest, size=size), folder)
    assert path == folder / "set.tar"
    assert path.read_bytes() == CONTENT
    assert left(folder) == ["set.tar"]
    assert ranges(server) == [None]


def test_what_is_there_and_right_is_not_fetched_again(server, tmp_path):
    download(archive(server), tmp_path)
    download(archive(server), tmp_path)
    assert len(server.asked) == 1


def test_what_is_there_and_wrong_is_fetched_again(server, tmp_path):
    (tmp_path / "set.tar").write_bytes(b"half of it")
    assert download(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_dropped_connection_goes_on_where_it_broke(server, tmp_path):
    server.drops = [300_000, 200_001]
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=300000-", "bytes=500001-"]
    assert [h.get("If-Range") for h in server.asked] == [None, '"one"', '"one"']


def test_attempts_that_get_further_are_not_counted(server, tmp_path):
    server.drops = [100_000] * 9
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 10


def test_a_later_process_goes_on(server, tmp_path):
    server.drops = [300_000, 0, 0, 0]
    with pytest.raises(OSError, match=r"set\.tar: .*the same command goes on from"):
        download(archive(server), tmp_path)
    assert left(tmp_path) == ["set.tar.partial", "set.tar.partial.version"]
    assert (tmp_path / "set.tar.partial").read_bytes() == CONTENT[:300_000]
    server.asked.clear()
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=300000-"]
    assert left(tmp_path) == ["set.tar"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges, server.drops = False, [300_000]
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
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
def test_a_file_that_changed_between_attempts_is_not_mixed(
    server, tmp_path, before, after
):
    server.content, server.headers, server.drops = OTHER, before, [300_000, 0, 0, 0]
    with pytest.raises(OSError):
        download(archive(server), tmp_path)
    server.content, server.headers = CONTENT, after
    assert download(archive(server), tmp_path).read_bytes() == CONTENT


def test_without_any_validator_the_checksum_tells(server, tmp_path):
    server.content, server.headers, server.drops = OTHER, {}, [300_000, 0, 0, 0]
    with pytest.raises(OSError):
        download(archive(server), tmp_path)
    server.content = CONTENT
    with pytest.raises(ValueError, match="checksum is not the published one"):
        download(archive(server), tmp_path)
    assert left(tmp_path) == []
    assert "If-Range" not in server.asked[-1]


def test_a_partial_file_that_is_whole_is_taken(server, tmp_path):
    (tmp_path / "set.tar.partial").write_bytes(CONTENT)
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT)}-"]


def test_a_partial_file_that_is_too_long_starts_over(server, tmp_path):
    (tmp_path / "set.tar.partial").write_bytes(CONTENT + b"more")
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_wrong_checksum_is_told_and_leaves_nothing(server, tmp_path):
    server.content = OTHER
    with pytest.raises(ValueError, match=r"set\.tar: .* is deleted: .*checksum"):
        download(archive(server), tmp_path)
    assert left(tmp_path) == []


def test_a_wrong_size_is_told_before_anything_is_fetched(server, tmp_path):
    with pytest.raises(ValueError, match="has 1048576 bytes where 7 are published"):
        download(archive(server, size=7), tmp_path)
    assert left(tmp_path) == []


def test_an_archive_without_checksum_has_all_the_bytes_announced(server, tmp_path):
    server.drops = [300_000, 0, 0, 0]
    with pytest.raises(OSError):
        download(archive(server, digest=""), tmp_path)
    assert "set.tar" not in left(tmp_path)


def test_a_size_that_is_not_announced_is_taken_as_it_comes(server, tmp_path):
    server.told_length = False
    assert download(archive(server), tmp_path).read_bytes() == CONTENT


def test_what_a_server_calls_gzip_encoded_stays_packed(server, tmp_path):
    server.headers = {"Content-Encoding": "x-gzip", "Content-Type": "application/x-tar"}
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked[0]["Accept-Encoding"] == "identity"


def test_a_web_page_is_no_archive(server, tmp_path):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(ValueError, match=r"a web page; get set\.tar with a browser"):
        download(archive(server, digest=""), tmp_path)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_names_status_address_and_way_out(server, tmp_path, status):
    server.statuses = [status]
    with pytest.raises(ValueError, match=rf"{server.url}: .*{status}.* put it into"):
        download(archive(server), tmp_path)
    assert len(server.asked) == 1
    assert left(tmp_path) == []


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429]
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_a_server_that_stays_broken_is_named(server, tmp_path):
    server.statuses = [500] * 4
    with pytest.raises(OSError, match=rf"{server.url}: the server answers 500"):
        download(archive(server), tmp_path)
    assert len(server.asked) == 4


def test_no_network_is_told(tmp_path):
    gone = Archive("set.tar", url="http://127.0.0.1:9/set.tar")  # nobody listens
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9/set\.tar: cannot be reached"):
        download(gone, tmp_path)


def test_an_address_that_is_none_is_told(tmp_path):
    with pytest.raises(OSError, match="http:///: cannot be fetched"):
        download(Archive("set.tar", url="http:///"), tmp_path)


def test_an_archive_that_needs_an_account_says_so(tmp_path):
    archive = Archive("test.tar", holds="test; from the evaluation server")
    with pytest.raises(ValueError, match=r"test\.tar: .*test; from the evaluation se"):
        download(archive, tmp_path)


def test_too_little_space_is_told_before_anything_is_written(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(9, 9, 1_000_000))
    with pytest.raises(ValueError, match=r"set\.tar: 0\.0 GB are to come"):
        download(archive(server), tmp_path)
    assert left(tmp_path) == []


def test_space_is_needed_only_for_what_is_to_come(server, tmp_path, monkeypatch):
    (tmp_path / "set.tar.partial").write_bytes(CONTENT[:500_000])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(9, 9, 600_000))
    assert download(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_full_disk_keeps_what_has_come(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "set.tar.partial").write_bytes(CONTENT[:500_000])
    monkeypatch.setattr(module, "_append", full)
    with pytest.raises(OSError, match=r"the disk is full.*the same command") as told:
        download(archive(server), tmp_path)
    assert told.value.errno == errno.ENOSPC
    monkeypatch.undo()
    download(archive(server), tmp_path)
    assert ranges(server) == ["bytes=500000-"] * 2


def test_an_interrupt_keeps_what_has_come(server, tmp_path, monkeypatch):
    class Interrupted(module.tqdm):
        def update(self, count):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "tqdm", Interrupted)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    with pytest.raises(KeyboardInterrupt):
        download(archive(server), tmp_path)
    monkeypatch.undo()
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-"]


def test_a_file_that_another_process_downloads_is_refused(server, tmp_path):
    with (tmp_path / ".set.tar.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is downloading it"):
            download(archive(server), tmp_path)
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
