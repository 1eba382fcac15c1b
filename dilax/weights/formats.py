"""Files of weights, by path or by name; `.safetensors` and `.npz`, also written.

Those with a name are downloaded once, verified, and stored in a cache folder. In
`.safetensors` and `.npz`, our arrays are named by module, layer and parameter,
`front_end/conv1_1/kernel`; kernels are HWIO. Other names are PyTorch's,
`features.0.weight`, whose kernels are OIHW.

Sources: the addresses and checksums that torchvision, Caffe's Model Zoo and Keras
publish. torchvision writes the first eight digits of a file's SHA-256 into its name.
"""

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dilax.runtime.download import download
from dilax.runtime.files import user_cache, whole_or_not_at_all
from dilax.weights.caffe import read_caffe
from dilax.weights.keras import read_keras
from dilax.weights.pytorch import read_torch
from dilax.weights.resolve import listed
from dilax.weights.stored import (
    Inputs,
    Shape,
    Stored,
    Weights,
    axes_of,
    check_size,
    from_buffer,
    open_zip,
    reading,
)

CACHE_VARIABLE = "DILAX_CACHE"
_MEAN = "mean"
_MAX_CHANNELS = 1000
_MAX_HEADER = 4 << 20  # bytes of a .safetensors header, plus 2 % of the file's size
_MAX_NPY_HEADER = 10_000  # the limit of `numpy.lib.format`, which reads all of it first
_MAX_INDEX, _MAX_SHARDS = 4 << 20, 1000


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
    published, target = PUBLISHED[name], weights_path(name)
    if not target.exists():
        print(f"{name}: {published.holds}, into {target.parent}")
        try:
            download(published.url, target)
        except (ValueError, OSError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(
                f"{name}: {error}. Without a connection, download {published.url} on "
                f"another machine and save it as {target} ({CACHE_VARIABLE} names "
                "another cache folder), or give a file that you have, "
                "--config.init=FILE"
            ) from error
    with target.open("rb") as stream:
        found = hashlib.file_digest(stream, published.algorithm).hexdigest()
    if not found.startswith(published.digest):
        raise ValueError(
            f"{target}: is not the file that {published.url} should be: its "
            f"{published.algorithm} is {found}, but {published.digest} is published. "
            "Delete it, and repeat the command to download it again. A path instead of "
            "a name, --config.init=FILE, loads a file without this check"
        )
    return target


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


def read_safetensors(path: Path) -> Weights:
    """Read the arrays of a `.safetensors` file.

    Raises:
        ValueError: if it is another kind of file.
    """
    with path.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if header > _MAX_HEADER + path.stat().st_size // 50:
        raise ValueError(f"its header of {header} bytes is too long")
    with safetensors.safe_open(path, "np") as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        mean = json.loads((file.metadata() or {}).get(_MEAN, "null"))

    def read(name: str) -> np.ndarray:
        with safetensors.safe_open(path, "np") as file:
            return file.get_tensor(name)

    return _weights(path, "safetensors", shapes, read, mean)


def read_npz(path: Path) -> Weights:
    """Read the arrays of an `.npz` file; objects are refused.

    Raises:
        ValueError: if it is another kind of file.
    """
    shapes, entries = {}, {}
    with open_zip(path) as archive:
        for entry in archive.namelist():
            name = entry.removesuffix(".npy")
            with archive.open(entry) as file:
                entries[name], shapes[name] = entry, _npy_header(file)[1]

    def read(name: str) -> np.ndarray:
        with open_zip(path) as archive, archive.open(entries[name]) as file:
            dtype, shape, fortran, at = _npy_header(file)
            size = archive.getinfo(entries[name]).file_size
            if size > 4 * path.stat().st_size + (64 << 20):
                raise ValueError(f"{entries[name]}: unpacks to {size} bytes")
            check_size(shape, dtype, size - at)
            file.seek(at)
            content = file.read(size - at)
        values = from_buffer(content, dtype, shape[::-1] if fortran else shape)
        return values.T if fortran else values

    mean = None
    if _MEAN in shapes:
        [count] = shapes.pop(_MEAN)
        values = read(_MEAN)
        numbers = count <= _MAX_CHANNELS and values.dtype.kind in "fiu"
        mean = values.tolist() if numbers else []
    return _weights(path, "npz", shapes, read, mean)


def _npy_header(file: Any) -> tuple[np.dtype, Shape, bool, int]:
    """Read (dtype, shape, whether in Fortran order, where the values begin)."""
    head = io.BytesIO(file.read(12 + _MAX_NPY_HEADER))
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(head)
    elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(head)
    else:
        raise ValueError(f"version {version} of NumPy's format is for named fields")
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise ValueError("holds Python objects, not arrays of numbers")
    return dtype, tuple(map(int, shape)), fortran, head.tell()


def _weights(
    path: Path,
    kind: str,
    shapes: Mapping[str, Shape],
    read: Callable[[str], np.ndarray],
    mean: Any,
) -> Weights:
    if not shapes:
        raise ValueError("holds no arrays")
    tensors = {
        name: Stored(shape, axes_of(name), functools.partial(read, name))
        for name, shape in shapes.items()
    }
    if mean is None:
        return Weights(path, kind, tensors)
    pixel = tuple(float(value) for value in mean)
    if not pixel or not all(map(math.isfinite, pixel)):
        raise ValueError(f"its mean pixel is {mean}")
    return Weights(path, kind, tensors, Inputs(pixel))


_READERS: dict[str, tuple[str, Callable[[Path], Weights]]] = {
    ".caffemodel": ("Caffe", read_caffe),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), ("Keras", read_keras)),
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".tar"), ("PyTorch", read_torch)),
    ".safetensors": ("safetensors", read_safetensors),
    ".npz": ("npz", read_npz),
}


def save_weights(
    params: Mapping[str, Any], path: str | Path, mean: tuple[float, ...] | None = None
) -> None:
    """Write parameters to a `.safetensors` or `.npz` file, atomically.

    `load_weights` returns them bit for bit.

    Args:
        params: `{"front_end": …, "context": …}`, float32.
        path: its suffix determines the format; an existing file is replaced.
        mean: the mean pixel (B, G, R) that is subtracted from the network's images; it
            is stored in the file, for use with other data sets.

    Raises:
        ValueError: for another suffix, or parameters that are not float32.

    Example:
        >>> import tempfile
        >>> params = {"front_end": {"a": {"kernel": np.ones((3, 3, 3, 4), np.float32)}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(params, path := Path(folder, "net.safetensors"))
        ...     read_safetensors(path).tensors["front_end/a/kernel"].shape
        (3, 3, 3, 4)
    """
    path = Path(path).expanduser()
    arrays = {
        name: np.asarray(leaf)
        for name, leaf in traverse_util.flatten_dict(dict(params), sep="/").items()
    }
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"save_weights: {name} is {array.dtype}, not float32")
    if path.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"save_weights: {path} must end in .safetensors or .npz")
    with whole_or_not_at_all(path, durable=True) as partial, partial.open("wb") as file:
        if path.suffix == ".npz":
            about = {_MEAN: np.asarray(mean, np.float64)} if mean else {}
            np.savez(file, **about, **arrays)  # type: ignore[arg-type]
        else:
            text = {_MEAN: json.dumps(mean)} if mean else None
            whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
            file.write(safetensors.numpy.save(whole, metadata=text))
