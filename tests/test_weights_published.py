"""Weights by name: downloaded once from a server in this process, and verified."""

import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
from weight_files import keras_file, vgg_layers

from dilax.runtime import download as downloads
from dilax.training.initial import locate_init
from dilax.weights import (
    PUBLISHED,
    Published,
    fetch_weights,
    read_weights,
    weights_path,
)


class Publisher(http.server.BaseHTTPRequestHandler):
    """Serves the server's content; breaks off after `server.drops` bytes, once."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range", "")
        server.asked.append(wanted)
        start, size = int(wanted[6:-1] or 0) if wanted else 0, len(server.content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        drop, server.drops = server.drops, None
        self.wfile.write(server.content[start:][:drop])


@pytest.fixture
def content(tmp_path) -> bytes:
    """A narrow VGG-16's convolutions, as Keras stores them."""
    path = tmp_path / "made.h5"
    keras_file(path, vgg_layers(), top=False)
    return path.read_bytes()


@pytest.fixture
def server(content, tmp_path, monkeypatch):
    """The only publisher of weights, whose file the name `net` stands for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher) as publisher:
        publisher.content, publisher.asked, publisher.drops = content, [], None
        publisher.handle_error = lambda *args: None
        thread = threading.Thread(target=publisher.serve_forever, args=(0.01,))
        thread.start()
        _publish(monkeypatch, publisher, "md5", hashlib.md5(content).hexdigest())
        monkeypatch.setenv("DILAX_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(downloads, "PAUSES", (0.0,))
        yield publisher
        publisher.shutdown()
        thread.join()


def _publish(monkeypatch, publisher, algorithm, digest):
    url = f"http://127.0.0.1:{publisher.server_port}/net.h5"
    published = Published(url, algorithm, digest, "a narrow VGG-16")
    monkeypatch.setitem(PUBLISHED, "net", published)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("digits", [8, None])
def test_a_name_is_downloaded_once_and_verified(
    algorithm, digits, server, content, tmp_path, monkeypatch
):
    digest = hashlib.new(algorithm, content).hexdigest()[:digits]
    _publish(monkeypatch, server, algorithm, digest)
    path = fetch_weights("net")
    assert path == tmp_path / "cache" / "weights" / "net.h5"
    assert path.read_bytes() == content
    assert fetch_weights("net") == path
    assert server.asked == [""]


def test_a_download_that_broke_off_goes_on(server, content):
    server.drops = 1000
    assert fetch_weights("net").read_bytes() == content
    assert server.asked == ["", "bytes=1000-"]


def test_a_file_with_another_checksum_is_refused(server, monkeypatch):
    server.content = bytes(1000)
    with pytest.raises(ValueError, match=r"(?s)net\.h5: is not the file .*its md5 is "):
        fetch_weights("net")
    with pytest.raises(ValueError, match="Delete it"):
        fetch_weights("net")
    assert server.asked == [""]
    weights_path("net").unlink()


def test_a_file_put_there_by_hand_needs_no_connection(server, content):
    target = weights_path("net")
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    assert set(read_weights("net").tensors) == set(read_weights(target).tensors)
    assert server.asked == []


def test_without_a_connection_it_says_what_to_put_where(server, monkeypatch):
    unreachable = "http://127.0.0.1:9/net.h5"
    monkeypatch.setitem(PUBLISHED, "net", PUBLISHED["net"]._replace(url=unreachable))
    with pytest.raises(OSError, match="cannot be reached") as caught:
        fetch_weights("net")
    message = str(caught.value)
    assert unreachable in message and str(weights_path("net")) in message
    assert "DILAX_CACHE" in message and "--config.init=FILE" in message


def test_weights_are_read_by_name(server):
    layers = vgg_layers()
    weights = read_weights("net")
    kernel = layers["conv3_1"][0]
    stored = weights.tensors["conv3_1/kernel"]
    np.testing.assert_array_equal(stored.fitted(kernel.shape), kernel)


def test_a_run_that_began_does_not_download_again(server):
    located = locate_init("net", fetch=False)
    assert server.asked == [] and not Path(located).exists()
    assert locate_init("net", fetch=True) == located
    assert server.asked == [""] and Path(located).exists()


def test_paths_are_no_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights_path("./vgg16") == Path("vgg16")
    assert weights_path(Path("vgg16")) == Path("vgg16")
    with pytest.raises(ValueError, match="'vgg17': must be one of vgg16, vgg16_caffe"):
        fetch_weights("vgg17")


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("DILAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    path = "/caches/dilax/weights/vgg16-397923af.pth"
    assert weights_path("vgg16") == Path(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checksums_are_of_their_algorithm(name):
    published = PUBLISHED[name]
    length = 2 * hashlib.new(published.algorithm).digest_size
    assert set(published.digest) <= set("0123456789abcdef")
    if len(published.digest) != length:  # torchvision's names have the first eight
        assert published.algorithm == "sha256" and len(published.digest) == 8
        assert published.file.partition(".")[0].endswith(f"-{published.digest}")
