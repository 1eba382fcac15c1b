"""VGG-16 in Keras's HDF5 files: weights alone, whole models, and `.weights.h5`.

Only arrays and the names of their layers are read: no configuration, no code. Kernels
are (h, w, in, out), as here; dense layers number their inputs by row, column, channel.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import dilax.weights.hdf5 as hdf5
from dilax.weights.names import VGG, from_keras
from dilax.weights.stored import CAFFE, Stored, Weights, from_buffer, mapped


def read_keras(path: Path) -> Weights:
    """The arrays of a Keras file, under our names where they are VGG-16's.

    Raises:
        ValueError: if it is no such file, or two arrays are of the same layer.
    """
    tensors: dict[str, Stored] = {}
    flat = _flattened(path)
    at = 8 + int.from_bytes(flat[:8], "little")
    for name, layer, shape, dtype, problem in json.loads(bytes(flat[8:at])):
        size = 0 if problem else math.prod(shape) * np.dtype(dtype).itemsize
        values, at = flat[at : at + size], at + size
        if name.startswith("optimizer"):
            continue
        ours = from_keras(name, layer)
        if ours in tensors:
            raise ValueError(f"two arrays are of {ours}; one of them is {name}")
        read = _reader(name, values, np.dtype(dtype), tuple(shape), problem)
        tensors[ours] = Stored(tuple(shape), "hwio", read)
    if not tensors:
        raise ValueError("holds no arrays")
    known = {layer.rpartition("/")[0] for layer in tensors} & set(VGG)
    return Weights(path, "Keras", tensors, CAFFE if known else None)


def _reader(
    name: str,
    values: memoryview,
    dtype: np.dtype,
    shape: tuple[int, ...],
    problem: str,
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if problem:
            raise ValueError(f"{name}: {problem}")
        return from_buffer(values, dtype, shape)

    return read


def _flattened(path: Path) -> memoryview:
    """What `hdf5.py` makes of a file, in a process that a broken one may bring down."""
    path.stat()  # raises where there is none
    command = [sys.executable, "-P", hdf5.__file__, str(path.resolve())]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=-1, env=alone
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise ValueError(said or f"HDF5 ended with {done.returncode}")
        return memoryview(mapped(out))
