"""VGG-16 in Keras's files: HDF5 of weights or whole models, `.weights.h5`, `.keras`.

Only arrays and the names of their layers are read: no configuration, no code. Kernels
are (h, w, in, out), as here; dense layers number their inputs by row, column, channel.

The HDF5 library trusts its files: broken ones make it allocate unlimited memory, or
crash. So it runs in a separate process with limits, and never in the one that loads
weights.
"""

import functools
import inspect
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dilax.weights.resolve import CONVOLUTIONS, DENSE, VGG
from dilax.weights.stored import (
    CAFFE,
    Shape,
    Stored,
    Weights,
    from_buffer,
    mapped,
    stored_entries,
)

_NAMES = (
    {name: name for name in VGG}
    | {f"block{n[4]}_conv{n[6]}": n for n in CONVOLUTIONS}
    | dict(zip(("fc1", "fc2", "predictions"), DENSE, strict=True))
)


def read_keras(path: Path) -> Weights:
    """Read the arrays of a Keras file, under our names where they are VGG-16's.

    Raises:
        ValueError: if it is another kind of file, or two arrays belong to one layer.
    """
    if zipfile.is_zipfile(path):  # `.keras`
        entries = stored_entries(path)
        if "model.weights.h5" not in entries:
            raise ValueError("this zip has no model.weights.h5, as Keras writes it")
        with tempfile.NamedTemporaryFile(suffix=".h5") as file:
            file.write(entries["model.weights.h5"]())
            file.flush()
            flat = _flattened(Path(file.name))
    else:
        flat = _flattened(path)
    at = 8 + int.from_bytes(flat[:8], "little")
    arrays, layers = {}, {}
    for name, layer, shape, dtype, problem in json.loads(bytes(flat[8:at])):
        kind = np.dtype(dtype)
        size = 0 if problem else math.prod(shape) * kind.itemsize
        values, at = flat[at : at + size], at + size
        read = functools.partial(_values, name, values, kind, tuple(shape), problem)
        if not name.startswith("optimizer"):
            arrays[name] = Stored(tuple(shape), "hwio", read)
            layers[name] = layer
    ours = _our_names(arrays, layers)
    tensors: dict[str, Stored] = {}
    for name, stored in arrays.items():
        if (own := ours.get(name, name)) in tensors:
            raise ValueError(f"two arrays belong to {own}; one of them is {name}")
        tensors[own] = stored
    if not tensors:
        raise ValueError("holds no arrays")
    return Weights(path, "Keras", tensors, CAFFE if ours else None)


def _values(
    name: str, values: memoryview, dtype: np.dtype, shape: Shape, problem: str
) -> np.ndarray:
    if problem:
        raise ValueError(f"{name}: {problem}")
    return from_buffer(values, dtype, shape)


def _our_names(
    arrays: Mapping[str, Stored], layers: Mapping[str, str]
) -> dict[str, str]:
    """Name the arrays that are VGG-16's by their layers.

    A layer is recognized by its own name, which Keras 3 stores as an attribute, or by
    its path in the file. If no layer is recognized, Keras chose the names: paths then
    number the layers of each kind separately in every nested model, and own names
    number them across all models of a session (conv2d_14 …). If the kernels' shapes in
    the order of one or the other are those of VGG-16, that order is used.

    Args:
        arrays: by their paths in the file.
        layers: path → the layer's own name, or nothing.
    """
    parts = {}  # (folder, "kernel" or "bias") → path
    names = {}
    for path in arrays:
        folder, _, last = path.rpartition("/")
        part = re.fullmatch(r"(?:.*_)?(W|kernel|b|bias)(?:_\d+)?(?::0)?|([01])", last)
        if not part:
            continue
        kind = "bias" if part[1] in ("b", "bias") or part[2] == "1" else "kernel"
        parts[folder, kind] = path
        known = [_NAMES[p] for p in (*folder.split("/"), layers[path]) if p in _NAMES]
        if known:
            names[path] = f"{known[-1]}/{kind}"
    if names:
        return names
    kernels = [(f, path) for (f, kind), path in parts.items() if kind == "kernel"]
    by_own_name = sorted(kernels, key=lambda item: _counted(layers[item[1]]))
    by_path = sorted(kernels, key=lambda item: _counted(item[0]))
    for order in (by_own_name, by_path):
        found = _vgg_layers([(folder, arrays[path].shape) for folder, path in order])
        if found:
            return {
                path: f"{found[folder]}/{kind}"
                for (folder, kind), path in parts.items()
                if folder in found
            }
    return {}


def _counted(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts conv2d_10 after conv2d_9, and both after conv2d."""
    pairs = (re.fullmatch(r"(.*?)_?(\d*)", p) for p in name.split("/"))
    return [(pair[1], int(pair[2] or 0)) for pair in pairs if pair]


def _vgg_layers(kernels: Sequence[tuple[str, Shape]]) -> dict[str, str]:
    """Return folder → our name of kernels in VGG-16's order; {} if they are others.

    Each convolution takes as many maps as the previous one returns, and those of a
    block return equally many. The dense layers take the last one's 7 × 7 maps.
    """
    found: dict[str, str] = {}
    widths: dict[str, int] = {}
    before = 0
    convolutions = (item for item in kernels if item[1][:2] == (3, 3))
    for name, (folder, shape) in zip(CONVOLUTIONS, convolutions, strict=False):
        c_in, c_out = shape[2:]
        if before not in (0, c_in) or widths.setdefault(name[:5], c_out) != c_out:
            return {}
        found[folder], before = name, c_out
    if len(found) == len(CONVOLUTIONS):
        size = 49 * before
        dense = (item for item in kernels if len(item[1]) == 2)
        for name, (folder, shape) in zip(DENSE, dense, strict=False):
            if shape[0] != size:
                break
            found[folder], size = name, shape[1]
    return found


def _flattened(path: Path) -> memoryview:
    """Run `_flatten` on a file, in a process that a broken file may end."""
    size = path.stat().st_size  # raises an error if there is no file
    parts = [inspect.getsource(part) for part in (_limit, _problem, _flatten)]
    program = "\n".join(["import json, math, sys", *parts, "_flatten()"])
    command = [sys.executable, "-P", "-c", program, str(path.resolve()), str(size)]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=-1, env=alone
        )
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()
            raise ValueError(message or f"HDF5 ended with {done.returncode}")
        return memoryview(mapped(out))


def _limit(size: int) -> None:
    """Limit memory to the current use plus twice the file's size, and time."""
    try:
        import resource

        seconds = 60 + size // 20_000_000
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + 2 * size + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):
        pass  # not on every system


def _problem(item) -> str:
    """Say why the values of a data set are not read."""
    if item.dtype.kind != "f" or item.dtype.hasobject:
        return f"holds {item.dtype}, not floating-point numbers"
    if item.is_virtual or item.external:
        return "its values are in another file"
    values = math.prod(item.shape) * item.dtype.itemsize
    chunk = math.prod(item.chunks or item.shape) * item.dtype.itemsize
    stored = item.id.get_storage_size()
    if chunk > values:
        return f"{values} bytes are in chunks of {chunk}"
    if not stored or (item.chunks is None and stored != values):
        return f"{stored} of its {values} bytes are in the file"
    return ""


def _flatten() -> None:
    """Write out the arrays of an HDF5 file.

    The output consists of the length of a JSON text in eight bytes, little-endian; the
    text, `[[name, layer, shape, dtype, problem], …]`; and the concatenated values of
    the arrays without a problem.
    """
    import h5py
    import numpy as np

    path, size = sys.argv[1], int(sys.argv[2])
    _limit(size)  # after the imports, because their memory counts
    about: list[tuple] = []
    sound = []

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        own = item.parent.attrs.get("name", "")
        own = own if isinstance(own, str) else ""
        if len(about) == 20_000 or len(name) + len(own) > 1000:
            raise ValueError("holds more or longer names than weights have")
        shape, problem = [int(n) for n in item.shape or ()], _problem(item)
        about.append((name, own, shape, item.dtype.str, problem))
        if not problem:
            sound.append(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
            if sum(item.nbytes for item in sound) > 4 * size + (64 << 20):
                raise ValueError("holds more values than a file of its size should")
            text = json.dumps(about).encode()
            sys.stdout.buffer.write(len(text).to_bytes(8, "little") + text)
            for item in sound:
                sys.stdout.buffer.write(np.ascontiguousarray(item[()]).data)
        sys.stdout.flush()
    except Exception as error:
        sys.exit(str(error)[:500] or type(error).__name__)
