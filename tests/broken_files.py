"""Broken files, and what a reader may do with one: read it, or raise `ValueError`."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
from weight_files import Layers, mutations

from dilax.models import DilatedNet, FrontEnd, Layer
from dilax.weights import Inputs, read_weights
from dilax.weights.load import assign_weights

_MOST_MEMORY = 20_000_000
_MODEL = DilatedNet(
    FrontEnd(5, (Layer("conv1_1", 3, 4), Layer("conv1_2", 3, 4), Layer("fc7", 1, 8)))
)


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with a flipped bit, zeros, other bytes, a cut, no bytes, or some twice."""
    data, size = bytearray(content), len(content)
    at = int(rng.integers(max(size, 1)))
    end = at + int(rng.integers(1, 400))
    match rng.integers(6):
        case 0 if size:
            data[at] ^= 1 << int(rng.integers(8))
        case 1:
            data[at:end] = bytes(len(data[at:end]))
        case 2:
            data[at:end] = rng.bytes(len(data[at:end]))
        case 3:
            del data[at:]
        case 4:
            data.clear()
        case _:
            data[at:at] = data[at:end]
    return bytes(data)


def check_broken(
    path: Path, content: bytes, layers: Layers, count: int = 200, seed: int = 0
) -> int:
    """Reads mutated files and loads what they hold; returns how many were refused.

    Args:
        path: where to write them; its suffix says their kind.
        content: of a sound file.
        layers: that it holds.
        count: how many to try.
        seed: which ones.
    """
    initial = {
        "front_end": {
            name: dict(kernel=np.zeros_like(kernel), bias=np.zeros_like(bias))
            for name, (kernel, bias) in layers.items()
        }
    }

    def load():
        weights = read_weights(path, Inputs((0.0, 0.0, 0.0)))
        everything = dict(allow_missing=("*",))
        return assign_weights(weights, _MODEL, initial, **everything)[0]

    path.write_bytes(content)
    whole = load()["front_end"]
    for name, (kernel, _) in layers.items():
        np.testing.assert_array_equal(whole[name]["kernel"], kernel)
    refused = 0
    start = time.perf_counter()
    tracemalloc.start()
    for mutated in mutations(content, count, seed):
        path.write_bytes(mutated)
        try:
            load()
        except (ValueError, OSError) as error:
            assert "Type-check" not in str(error)
            assert len(str(error)) < 5000
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < _MOST_MEMORY
    assert time.perf_counter() - start < 60 * max(1, count / 200)
    return refused
