"""`.safetensors` and `.npz`: arrays under flat names, read and written.

Ours are named by module, layer and parameter, `front_end/conv1_1/kernel`; kernels are
HWIO. Other names are taken for PyTorch's, `features.0.weight`, whose kernels are OIHW.
"""

import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dilax.runtime.files import whole_or_not_at_all
from dilax.weights.names import from_torch, torch_inputs
from dilax.weights.stored import Inputs, Shape, Stored, Weights, from_buffer

_MEAN = "mean"
_MOST_CHANNELS = 1000


def read_safetensors(path: Path) -> Weights:
    """The arrays of a `.safetensors` file.

    Raises:
        ValueError: if it is no such file.
    """

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with safetensors.safe_open(path, "np") as file:
                return file.get_tensor(name)

        return read

    with safetensors.safe_open(path, "np") as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        mean = (file.metadata() or {}).get(_MEAN)
    arrays = {name: (shape, reader(name)) for name, shape in shapes.items()}
    return _named(path, "safetensors", arrays, _pixel(json.loads(mean or "null")))


def read_npz(path: Path) -> Weights:
    """The arrays of a `.npz` file; objects are refused.

    Raises:
        ValueError: if it is no such file.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                shape = _npy_header(file)[1]
            arrays[entry.removesuffix(".npy")] = (shape, _npy_reader(path, entry))
    mean = None
    if _MEAN in arrays:
        (count,), read = arrays.pop(_MEAN)
        mean = _pixel(read().tolist() if count <= _MOST_CHANNELS else [])
    return _named(path, "npz", arrays, mean)


def _npy_reader(path: Path, entry: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
            dtype, shape, fortran = _npy_header(file)
            size = math.prod(shape) * dtype.itemsize
            left = archive.getinfo(entry).file_size - file.tell()
            if left != size:
                raise ValueError(f"{entry}: {left} bytes for shape {shape}")
            content = file.read(size)
        values = from_buffer(content, dtype, shape[::-1] if fortran else shape)
        return values.T if fortran else values

    return read


def _npy_header(file: Any) -> tuple[np.dtype, Shape, bool]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of NumPy's format is for named fields")
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise ValueError("holds Python objects, not arrays of numbers")
    return dtype, tuple(map(int, shape)), fortran


def _named(
    path: Path,
    kind: str,
    arrays: Mapping[str, tuple[Shape, Callable[[], np.ndarray]]],
    mean: tuple[float, ...] | None,
) -> Weights:
    tensors: dict[str, Stored] = {}
    for given, (shape, read) in arrays.items():
        ours = "/" in given or "." not in given
        name = given if ours else from_torch(given)
        if name in tensors:
            raise ValueError(f"two arrays are called {name}")
        tensors[name] = Stored(shape, "hwio" if ours else "oihw", read)
    inputs = Inputs(mean) if mean else torch_inputs(arrays)
    if not tensors:
        raise ValueError("holds no arrays")
    return Weights(path, kind, tensors, inputs)


def _pixel(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    pixel = tuple(float(value) for value in values)
    if not pixel or not all(map(math.isfinite, pixel)):
        raise ValueError(f"its mean pixel is {values}")
    return pixel


def save_weights(
    params: Mapping[str, Any],
    path: str | Path,
    mean: tuple[float, ...] | None = None,
) -> None:
    """Writes parameters to a `.safetensors` or `.npz` file, whole or not at all.

    `load_weights` gives them back bit for bit.

    Args:
        params: `{"front_end": …, "context": …}`, float32.
        path: its suffix decides the format; a file that is there is replaced.
        mean: the mean pixel (B, G, R) that the network expects subtracted, kept in the
            file for whoever loads it for another data set.

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
    if path.suffix not in _WRITERS:
        raise ValueError(f"save_weights: {path} ends in none of .safetensors, .npz")
    with whole_or_not_at_all(path, durable=True) as partial, partial.open("wb") as file:
        _WRITERS[path.suffix](file, arrays, mean)


def _write_safetensors(file: IO[bytes], arrays: dict[str, np.ndarray], mean) -> None:
    about = {_MEAN: json.dumps(mean)} if mean else None
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    file.write(safetensors.numpy.save(whole, metadata=about))


def _write_npz(file: IO[bytes], arrays: dict[str, np.ndarray], mean) -> None:
    if mean:
        arrays = {_MEAN: np.asarray(mean, np.float64), **arrays}
    np.savez(file, **arrays)  # type: ignore[arg-type]


_WRITERS = {".safetensors": _write_safetensors, ".npz": _write_npz}
