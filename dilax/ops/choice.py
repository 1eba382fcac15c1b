"""Which lowering of a dilated convolution is fastest: a table that was measured.

`benchmarks/tune_dilated_conv.py` times every lowering on the layers of the paper's
networks and writes the table; a shape that is not in it takes the nearest one's.
"""

import functools
import json
import math
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.ops.lowerings import Lowering

# What taps see side by side, in bytes: more gives way to a lowering that lays out less.
_MOST_COPIED = 2**28
# Operations below which nothing is to be gained, and direct compiles fastest.
_LEAST_WORK = 10**8


class Choice(NamedTuple):
    """The lowering of each pass.

    Attributes:
        forward: of the output.
        input: of the gradient by the input.
        kernel: of the gradient by the kernel.
    """

    forward: Lowering
    input: Lowering
    kernel: Lowering


DIRECT = Choice("direct", "direct", "direct")
PHASES = Choice("phases", "phases", "phases")


def choose(
    x: tuple[Any, ...],
    kernel: tuple[int, ...],
    dilation: int,
    dtype: DTypeLike,
    backend: str | None = None,
) -> Choice:
    """The fastest lowerings for a convolution of these shapes.

    Args:
        x: (b, h, w, c); sizes may be symbolic, as in an export, which takes
            `"direct"`: it may run anywhere.
        kernel: (kh, kw, c, d).
        dilation: cells from one tap to the next.
        dtype: of both.
        backend: `"cpu"`, `"gpu"` or `"tpu"`; None takes the default backend. One that
            was not measured takes `"direct"`, but no GPU for a dilated kernel: XLA was
            seen to build the dilated filter there, which phases never do.
    """
    backend = backend or jax.default_backend()
    if not all(isinstance(n, int) for n in x):
        return DIRECT
    rows = _rows(backend, jnp.dtype(dtype).name)
    if not rows:
        return PHASES if backend == "gpu" and dilation > 1 else DIRECT
    (b, h, w, c), (kh, kw, _, d) = x, kernel
    cells = b * max(1, h - dilation * (kh - 1)) * max(1, w - dilation * (kw - 1))
    if 2 * kh * kw * c * d * cells < _LEAST_WORK:
        return DIRECT
    place = _place(kh * kw, c, d, dilation, cells)
    nearest = min(rows, key=lambda row: math.dist(row[0], place))[1]
    one = cells * c * jnp.dtype(dtype).itemsize
    return Choice(*[_affordable(way, kh, kw, one) for way in nearest])


def _affordable(lowering: Lowering, kh: int, kw: int, bytes_of_a_tap: int) -> Lowering:
    if lowering == "patches" and kh * kw * bytes_of_a_tap > _MOST_COPIED:
        lowering = "rows"
    if lowering == "rows" and kw * bytes_of_a_tap > _MOST_COPIED:
        lowering = "taps"
    return lowering


@functools.cache
def _rows(backend: str, dtype: str) -> list[tuple[tuple[float, ...], Choice]]:
    """Place and choice of every row that was measured."""
    file = resources.files("dilax.ops") / "lowerings.json"
    return [
        (_row_place(row), Choice(row["forward"], row["input"], row["kernel"]))
        for row in json.loads(file.read_text("utf-8"))
        if (row["backend"], row["dtype"]) == (backend, dtype)
    ]


def _row_place(row: dict[str, Any]) -> tuple[float, ...]:
    taps, (c, d) = row["taps"] ** 2, row["channels"]
    return _place(taps, c, d, row["dilation"], row["cells"])


def _place(
    taps: int, channels: int, out: int, dilation: int, cells: int
) -> tuple[float, ...]:
    """Logarithms, so that distances are ratios; the number of taps counts most."""
    return (
        4 * math.log2(taps),
        math.log2(channels),
        math.log2(out),
        math.log2(dilation) / 2,
        math.log2(cells) / 4,
    )
