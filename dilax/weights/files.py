"""Files of weights, by path or by name.

Those with a name are downloaded once, verified, and stored in a cache folder.

Sources: the addresses and checksums that torchvision, Caffe's Model Zoo and Keras
publish. torchvision writes the first eight digits of a file's SHA-256 into its name.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dilax.runtime.download import download
from dilax.runtime.files import user_cache
from dilax.weights.caffe import read_caffe
from dilax.weights.flat import read_npz, read_safetensors
from dilax.weights.keras import read_keras
from dilax.weights.pytorch import read_torch
from dilax.weights.resolve import listed
from dilax.weights.stored import Inputs, Weights, reading

CACHE_VARIABLE = "DILAX_CACHE"


class Published(NamedTuple):
    """A file of trained weights as its publisher offers it.

    Attributes:
        url: its address.
        algorithm: of the published checksum, a name that `hashlib` knows.
        digest: the checksum in hexadecimal digits, or its first ones.
        holds: its contents, for messages.

    Example:
        >>> PUBLISHED["vgg16"].file
        'vgg16-397923af.pth'
    """

    url: str
    algorithm: str
    digest: str
    holds: str

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


PUBLISHED = {
    "vgg16": Published(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "sha256",
        "397923af",
        "VGG-16 trained on ImageNet, from torchvision, 553 MB",
    ),
    "vgg16_caffe": Published(
        "https://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"
        "VGG_ILSVRC_16_layers.caffemodel",
        "sha1",
        "9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24",
        "VGG-16 trained on ImageNet, from its authors, 553 MB",
    ),
    "vgg16_keras": Published(
        "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5",
        "6d6bbae143d832006294945121d1f1fc",
        "VGG-16's convolutions trained on ImageNet, from Keras, 59 MB",
    ),
    "resnet101": Published(
        "https://download.pytorch.org/models/resnet101-63fe2227.pth",
        "sha256",
        "63fe2227",
        "ResNet-101 trained on ImageNet, from torchvision, 179 MB",
    ),
}


def cache_folder() -> Path:
    """Return the folder of downloaded weights.

    It is `weights` in the folder that the environment variable `DILAX_CACHE` names, or
    otherwise in dilax's own cache (see `user_cache`).
    """
    root = os.environ.get(CACHE_VARIABLE)
    return Path(root).expanduser() / "weights" if root else user_cache("weights")


def weights_path(source: str | Path) -> Path:
    """Return the path of a file, or the cached path of published weights.

    Nothing is downloaded. For a file of your own with a published name, give `./vgg16`.

    Example:
        >>> weights_path("vgg16").name
        'vgg16-397923af.pth'
        >>> weights_path("net.npz")
        PosixPath('net.npz')
    """
    if isinstance(source, str) and source in PUBLISHED:
        return cache_folder() / PUBLISHED[source].file
    return Path(source).expanduser()


def fetch_weights(name: str) -> Path:
    """Return the file of published weights; download it unless it is in the cache.

    An interrupted download resumes. The checksum is verified even if the file was
    already in the cache.

    Args:
        name: one of the names in `PUBLISHED`.

    Raises:
        ValueError: if no weights have this name, the file is not the published one, or
            another process is downloading it.
        OSError: if the server refuses the file or cannot be reached, or the disk is
            full. Messages name the address, and where to save the file by hand.

    Example:
        >>> fetch_weights("vgg17")
        Traceback (most recent call last):
            ...
        ValueError: 'vgg17': must be one of vgg16, vgg16_caffe, vgg16_keras, resnet101
    """
    if name not in PUBLISHED:
        raise ValueError(f"{name!r}: must be one of {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    target = cache_folder() / published.file
    if not target.exists():
        print(f"{name}: {published.holds}, into {target.parent}")
        try:
            download(published.url, target)
        except ValueError as error:
            raise ValueError(f"{name}: {error}. {_by_hand(name)}") from error
        except OSError as error:
            raise OSError(f"{name}: {error}. {_by_hand(name)}") from error
    _verify(target, published)
    return target


def _verify(file: Path, published: Published) -> None:
    """Compare a file with the published checksum, or with its first digits."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, published.algorithm).hexdigest()
    if not found.startswith(published.digest):
        raise ValueError(
            f"{file}: is not the file that {published.url} should be: its "
            f"{published.algorithm} is {found}, but {published.digest} is published. "
            "Delete it, and repeat the command to download it again. A path instead of "
            "a name, --config.init=FILE, loads a file without this check"
        )


def _by_hand(name: str) -> str:
    """Explain what to do without a connection."""
    return (
        f"Without a connection, download {PUBLISHED[name].url} on another machine and "
        f"save it as {weights_path(name)} ({CACHE_VARIABLE} names another cache "
        "folder), or give a file that you have, --config.init=FILE"
    )


_READERS: dict[str, tuple[str, Callable[[Path], Weights]]] = {
    ".caffemodel": ("Caffe", read_caffe),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), ("Keras", read_keras)),
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".tar"), ("PyTorch", read_torch)),
    ".safetensors": ("safetensors", read_safetensors),
    ".npz": ("npz", read_npz),
}
_MAX_INDEX, _MAX_SHARDS = 4 << 20, 1000


def read_weights(path: str | Path, inputs: Inputs | None = None) -> Weights:
    """Read which arrays a file of weights contains; their values are read later.

    Args:
        path: `.caffemodel`, `.h5`, `.hdf5`, `.keras`, `.pth`, `.pt`, `.ckpt`, `.bin`,
            `.pth.tar`, `.safetensors`, `.npz`, or the `.index.json` of shards; or a
            name of `PUBLISHED`, such as `"vgg16"`, which `fetch_weights` downloads.
        inputs: the images that the file's network takes, if they differ from those that
            the kind of file implies.

    Raises:
        ValueError: naming the file, if it is missing, broken, or of another kind. No
            file can make this run code, or use more memory than four times its size
            plus 200 MB.

    Example:
        >>> import tempfile
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, init_params
        >>> from dilax.weights import save_weights
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(init_params(model, seed=1), f"{folder}/net.npz")
        ...     sorted(read_weights(f"{folder}/net.npz").tensors)[:1]
        ['front_end/conv1/bias']
    """
    if isinstance(path, str) and path in PUBLISHED:
        path = fetch_weights(path)
    path = Path(path).expanduser()
    kind, read = _READERS.get(path.suffix.lower(), ("", None))
    if path.name.endswith(".index.json"):
        kind, read = "sharded", _read_shards
    elif shard := re.fullmatch(r"(.+)-\d+-of-\d+(\.\w+)", path.name):
        index = path.with_name(f"{shard[1]}{shard[2]}.index.json")
        if index.is_file():
            return read_weights(index, inputs)
    if read is None:
        raise ValueError(
            f"{path}: weights are read from files that end in {', '.join(_READERS)}, "
            "or .index.json"
        )
    with reading(path, kind):
        weights = read(path)
    return weights if inputs is None else dataclasses.replace(weights, inputs=inputs)


def _read_shards(path: Path) -> Weights:
    """Read the arrays of several files beside an index, as Hugging Face writes them."""
    if path.stat().st_size > _MAX_INDEX:
        raise ValueError(f"an index of more than {_MAX_INDEX} bytes")
    files = json.loads(path.read_bytes())["weight_map"]
    shards = sorted(set(files.values()))
    strange = [s for s in shards if Path(s).name != s or s.lower().endswith(".json")]
    if strange or len(shards) > _MAX_SHARDS:
        raise ValueError(f"its weight_map names {listed(strange or shards)}")
    if absent := [s for s in shards if not (path.parent / s).is_file()]:
        raise ValueError(f"{listed(absent)} must be in the same folder")
    read = {s: _READERS[Path(s).suffix.lower()][1](path.parent / s) for s in shards}
    tensors = {name: read[shard].tensors[name] for name, shard in files.items()}
    return Weights(path, read[shards[0]].kind, tensors)
