"""`.safetensors` and `.npz`: arrays under flat names, read and written.

Ours are named by module, layer and parameter, `front_end/conv1_1/kernel`; kernels are
HWIO. Other names are PyTorch's, `features.0.weight`, whose kernels are OIHW.
"""

import functools
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dilax.runtime.files import whole_or_not_at_all
from dilax.weights.stored import (
    Inputs,
    Shape,
    Stored,
    Weights,
    from_buffer,
    has_own_name,
    open_zip,
)

_MEAN = "mean"
_MAX_CHANNELS = 1000
_MAX_HEADER = 4 << 20  # bytes of a .safetensors header, plus 2 % of the file's size
_MAX_NPY_HEADER = 10_000  # the limit of `numpy.lib.format`, which reads all of it first


def read_safetensors(path: Path) -> Weights:
    """Read the arrays of a `.safetensors` file.

    Raises:
        ValueError: if it is another kind of file.
    """
    with path.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if header > _MAX_HEADER + path.stat().st_size // 50:
        raise ValueError(f"its header of {header} bytes is too long")

    def read(name: str) -> np.ndarray:
        with safetensors.safe_open(path, "np") as file:
            return file.get_tensor(name)

    with safetensors.safe_open(path, "np") as file:
        tensors = {
            name: _stored(name, file.get_slice(name).get_shape(), read, name)
            for name in file.keys()  # noqa: SIM118  the file is no mapping
        }
        mean = (file.metadata() or {}).get(_MEAN)
    return _weights(path, "safetensors", tensors, json.loads(mean or "null"))


def read_npz(path: Path) -> Weights:
    """Read the arrays of an `.npz` file; objects are refused.

    Raises:
        ValueError: if it is another kind of file.
    """
    tensors = {}
    with open_zip(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                shape = _npy_header(file)[1]
            name = entry.removesuffix(".npy")
            tensors[name] = _stored(name, shape, _read_npy, path, entry)
    mean = None
    if stored := tensors.pop(_MEAN, None):
        [count] = stored.shape
        values = stored.read()
        numbers = count <= _MAX_CHANNELS and values.dtype.kind in "fiu"
        mean = values.tolist() if numbers else []
    return _weights(path, "npz", tensors, mean)


def _read_npy(path: Path, entry: str) -> np.ndarray:
    with open_zip(path) as archive, archive.open(entry) as file:
        dtype, shape, fortran, at = _npy_header(file)
        size = archive.getinfo(entry).file_size
        if size > 4 * path.stat().st_size + (64 << 20):
            raise ValueError(f"{entry}: unpacks to {size} bytes")
        if size - at != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{entry}: {size - at} bytes for shape {shape}")
        file.seek(at)
        content = file.read(size - at)
    values = from_buffer(content, dtype, shape[::-1] if fortran else shape)
    return values.T if fortran else values


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


def _stored(name: str, shape: Any, read: Any, *arguments: Any) -> Stored:
    axes: Any = "hwio" if has_own_name(name) else "oihw"
    return Stored(tuple(shape), axes, functools.partial(read, *arguments))


def _weights(
    path: Path, kind: str, tensors: Mapping[str, Stored], mean: Any
) -> Weights:
    if not tensors:
        raise ValueError("holds no arrays")
    if mean is None:
        return Weights(path, kind, tensors)
    pixel = tuple(float(value) for value in mean)
    if not pixel or not all(map(math.isfinite, pixel)):
        raise ValueError(f"its mean pixel is {mean}")
    return Weights(path, kind, tensors, Inputs(pixel))


def save_weights(
    params: Mapping[str, Any],
    path: str | Path,
    mean: tuple[float, ...] | None = None,
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
