"""Measures which lowering of `dilated_conv` is fastest here, and writes the table.

    python -m benchmarks.tune_dilated_conv [--write] [--dtypes=float32,bfloat16]

Every layer of the front end (whole and slim) at the maps of a crop of 628², and of the
context modules; output, input gradient and kernel gradient apart. The ways take turns,
A A B B C C A A …, each twice since the first run pays for memory that the one before
gave back; the fastest run of each counts. `--write` puts what is fastest into
dilax/ops/lowerings.json (or `--table`), in place of this backend's rows: direct, unless
another way saves more than a twentieth, and 0.2 ms on a CPU. Fifteen minutes on two
cores. On a GPU each run is twenty in a loop on the device.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tabulate import tabulate
from tqdm import tqdm

from dilax import ops
from dilax.models import BASIC, CITYSCAPES, LARGE, VGG16, VGG16_SLIM_HEAD
from dilax.ops.lowerings import LOWERINGS, convolve, input_gradient, kernel_gradient
from dilax.profiling.layer_costs import sampler

TABLE = Path(ops.__file__).with_name("lowerings.json")
CROP = 628
WORTH = 0.95  # of direct's time
LEAST = {"cpu": 2e-4}  # seconds less than direct's; elsewhere none
LOOPS = {"cpu": 1}  # runs of a sample; elsewhere twenty


class Shape(NamedTuple):
    """Of a convolution; taps and cells of the output along a side."""

    taps: int
    channels: int
    out: int
    dilation: int
    side: int


def shapes() -> Iterator[Shape]:
    """Of all layers, those of the whole front end first."""
    tables = [(VGG16, 1.0), (VGG16, 0.25), (VGG16_SLIM_HEAD, 0.125)]
    front_ends = [s for table, width in tables for s in _front_end(table, width)]
    modules = [(21, LARGE), (21, BASIC), (19, CITYSCAPES), (11, BASIC)]
    contexts = [s for classes, table in modules for s in _context(table, classes)]
    yield from dict.fromkeys([*front_ends, *contexts])  # each once


def _front_end(table, width: float) -> Iterator[Shape]:
    channels, side = 3, CROP
    for row in table:
        if not row.channels:
            side //= row.kernel
            continue
        side -= row.dilation * (row.kernel - 1)
        out = round(row.channels * width)
        yield Shape(row.kernel, channels, out, row.dilation, side)
        channels = out


def _context(table, classes: int) -> Iterator[Shape]:
    channels = classes
    for row in table:
        yield Shape(3, channels, row.multiplier * classes, row.dilation, 66)
        channels = row.multiplier * classes


def passes(
    shape: Shape, batch: int, dtype: str
) -> dict[str, tuple[Callable[[str], Callable], tuple]]:
    """Of each pass: a way's function, and the arguments."""
    taps, c, d, dilation, side = shape
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

    over = dilation * (taps - 1)
    x, kernel = random(batch, side + over, side + over, c), random(taps, taps, c, d)
    gradient = random(batch, side, side, d)
    like_x, like_kernel = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel))
    runs = {
        "forward": (
            lambda way: lambda x, k: convolve(x, k, dilation, way),
            (x, kernel),
        ),
        "input": (
            lambda way: lambda g, k: input_gradient(g, k, like_x, dilation, way),
            (gradient, kernel),
        ),
        "kernel": (
            lambda way: lambda x, g: kernel_gradient(x, g, like_kernel, dilation, way),
            (x, gradient),
        ),
    }
    if c == 3:  # images: nobody asks for their gradient
        del runs["input"]
    return runs


def ways(shape: Shape) -> list[str]:
    """The lowerings that differ for this shape."""
    out = set() if shape.dilation > 1 else {"phases"}
    if shape.taps == 1:
        out |= {"pairs", "winograd", "rows", "patches"}
    return [way for way in LOWERINGS if way not in out]


def measure(
    make: Callable, arguments: tuple, names: Sequence[str], repeats: int
) -> dict[str, float]:
    """Seconds of each way, the fastest run."""
    runs = LOOPS.get(jax.default_backend(), 20)
    samplers = {way: sampler(make(way), arguments, runs) for way in names}
    for sample in samplers.values():
        sample()  # compiles
    best = dict.fromkeys(names, float("inf"))
    for _ in range(repeats):
        for way, sample in [pair for pair in samplers.items() for _ in range(2)]:
            best[way] = min(best[way], sample())
    return best


def tune(
    dtypes: Sequence[str], minutes: float, batch: int = 1, repeats: int = 3
) -> tuple[list[dict], str]:
    """Rows of the table, and a Markdown table of all that was timed."""
    work = [(dtype, shape) for shape in shapes() for dtype in dtypes]
    end = time.monotonic() + 60 * minutes
    rows, shown = [], []
    for dtype, shape in tqdm(work, unit="layer"):
        if time.monotonic() > end:
            break
        taps, c, d, dilation, side = shape
        row = {"backend": jax.default_backend(), "dtype": dtype, "taps": taps}
        row |= {"channels": [c, d], "dilation": dilation}
        row |= {"cells": batch * side * side, "input": "direct"}
        for name, (make, arguments) in passes(shape, batch, dtype).items():
            seconds = measure(make, arguments, ways(shape), repeats)
            row[name] = fastest(seconds)
            times = [f"{1e3 * seconds.get(w, float('nan')):.3g}" for w in LOWERINGS]
            shown.append([dtype, *shape, name, *times, row[name]])
        rows.append(row)
    headers = ["dtype", "taps", "in", "out", "dilation", "side", "pass"]
    headers += [f"{way}, ms" for way in LOWERINGS] + ["chosen"]
    return rows, tabulate(shown, headers, "github", disable_numparse=True)


def fastest(seconds: dict[str, float]) -> str:
    """Direct, or what is faster by a margin."""
    best = min(seconds, key=lambda way: seconds[way])
    direct, less = seconds["direct"], LEAST.get(jax.default_backend(), 0.0)
    limit = min(WORTH * direct, direct - less)
    return best if seconds[best] < limit else "direct"


def write(rows: Sequence[dict], table: Path = TABLE) -> None:
    """Puts rows in place of those of the same backend and dtype.

    A table that is not there yet begins as the package's.
    """
    others = json.loads((table if table.exists() else TABLE).read_text("utf-8"))
    new = {(row["backend"], row["dtype"]) for row in rows}
    kept = [row for row in others if (row["backend"], row["dtype"]) not in new]
    lines = ",\n".join(json.dumps(row) for row in [*kept, *rows])
    table.write_text(f"[\n{lines}\n]\n", "utf-8")


def define_flags() -> None:
    """Defines them; not on import, as other benchmarks share names."""
    flags.DEFINE_bool("write", False, "Write the table.")
    flags.DEFINE_string("table", str(TABLE), "Where to write it.")
    flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Of the computation.")
    flags.DEFINE_integer("repeats", 3, "Runs of each way.", lower_bound=1)
    flags.DEFINE_integer("batch", 1, "Images at a time.", lower_bound=1)
    flags.DEFINE_float("minutes", 30.0, "Layers that come later are left out.")


def main(argv: list[str]) -> None:
    """Prints the table, and writes it if asked."""
    del argv
    logging.set_verbosity(logging.WARNING)
    asked = flags.FLAGS
    rows, text = tune(asked.dtypes, asked.minutes, asked.batch, asked.repeats)
    print(text)
    if flags.FLAGS.write:
        write(rows, Path(flags.FLAGS.table))


if __name__ == "__main__":
    define_flags()
    app.run(main)
