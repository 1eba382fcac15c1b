"""Times the lowerings of `dilated_conv`, and compares its choice with the fastest.

    python -m benchmarks.lowerings [--dtypes=float32,bfloat16] [--minutes=30]

It times every layer of the front end (at full, quarter, and eighth width) on a crop of
628², and of the context modules: the output and both gradients separately. Lowerings
take turns, each twice in a row because the first run pays for memory that the previous
one released; the fastest run of each counts. The last lines sum up what the choice of
`dilax.ops.lowerings.choose` costs compared with the fastest lowering of each pass, and
with XLA's own convolution. It takes about 15 minutes on two cores. On a GPU, each
run is a loop of twenty.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tabulate import tabulate
from tqdm import tqdm

from dilax.models import BASIC, CITYSCAPES, LARGE, VGG16, VGG16_SLIM_HEAD
from dilax.ops.lowerings import (
    LOWERINGS,
    choose,
    convolve,
    input_gradient,
    kernel_gradient,
)
from dilax.profiling.layer_costs import sampler

CROP = 628
LOOPS = {"cpu": 1}  # runs of a sample; elsewhere twenty


class Shape(NamedTuple):
    """A convolution: taps, channels, and cells of the output along a side."""

    taps: int
    channels: int
    out: int
    dilation: int
    side: int


def shapes() -> Iterator[Shape]:
    """Yield all layers, those of the full-width front end first."""
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
    """Return, for each pass, the function of a lowering and its arguments."""
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
    if c == 3:  # nobody needs the gradient of images
        del runs["input"]
    return runs


def ways(shape: Shape) -> list[str]:
    """Return the lowerings that differ for this shape."""
    out = set() if shape.dilation > 1 else {"phases"}
    if shape.taps == 1:
        out |= {"pairs", "winograd", "rows", "patches"}
    return [way for way in LOWERINGS if way not in out]


def measure(
    make: Callable, arguments: tuple, names: Sequence[str], repeats: int
) -> dict[str, float]:
    """Return the seconds of each lowering's fastest run."""
    runs = LOOPS.get(jax.default_backend(), 20)
    samplers = {way: sampler(make(way), arguments, runs) for way in names}
    for sample in samplers.values():
        sample()  # compiles
    best = dict.fromkeys(names, float("inf"))
    for _ in range(repeats):
        for way, sample in [pair for pair in samplers.items() for _ in range(2)]:
            best[way] = min(best[way], sample())
    return best


def compare(
    dtypes: Sequence[str], minutes: float, batch: int = 1, repeats: int = 3
) -> str:
    """Return a Markdown table of all that was timed, and what the choices cost."""
    work = [(dtype, shape) for shape in shapes() for dtype in dtypes]
    end = time.monotonic() + 60 * minutes
    shown, sums = [], {}
    for dtype, shape in tqdm(work, unit="layer"):
        if time.monotonic() > end:
            break
        taps, c, d, dilation, side = shape
        x = (batch, *(side + dilation * (taps - 1),) * 2, c)
        choice = choose(x, (taps, taps, c, d), dilation, dtype)
        for name, (make, arguments) in passes(shape, batch, dtype).items():
            names = ways(shape)
            if name != "kernel":  # the other passes of "examples" are those of "direct"
                names.remove("examples")
            seconds = measure(make, arguments, names, repeats)
            chosen = getattr(choice, name)
            times = [f"{1e3 * seconds.get(w, float('nan')):.3g}" for w in LOWERINGS]
            shown.append([dtype, *shape, name, *times, chosen])
            ms = np.array([seconds[chosen], min(seconds.values()), seconds["direct"]])
            sums[dtype, name] = sums.get((dtype, name), 0) + 1e3 * ms
    headers = ["dtype", "taps", "in", "out", "dilation", "side", "pass"]
    headers += [f"{way}, ms" for way in LOWERINGS] + ["chosen"]
    totals = [[*key, *(f"{ms:.0f}" for ms in row)] for key, row in sums.items()]
    total_headers = ["dtype", "pass", "chosen, ms", "fastest, ms", "direct, ms"]
    tables = [(shown, headers), (totals, total_headers)]
    return "\n\n".join(
        tabulate(rows, names, "github", disable_numparse=True) for rows, names in tables
    )


def define_flags() -> None:
    """Define the flags; not on import, because benchmarks share names."""
    flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types to compute in.")
    flags.DEFINE_integer("repeats", 3, "Runs of each lowering.", lower_bound=1)
    flags.DEFINE_integer("batch", 1, "Images per batch.", lower_bound=1)
    flags.DEFINE_float("minutes", 30.0, "Time after which no further layer is timed.")


def main(argv: list[str]) -> None:
    """Print both tables."""
    del argv
    logging.set_verbosity(logging.WARNING)
    asked = flags.FLAGS
    print(compare(asked.dtypes, asked.minutes, asked.batch, asked.repeats))


if __name__ == "__main__":
    define_flags()
    app.run(main)
