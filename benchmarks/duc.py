"""Dense upsampling (DUC) against bilinear upsampling and a transposed convolution.

    python -m benchmarks.duc [--cells=60] [--features=512] [--classes=19] [--repeats=5]

Each head maps the same features, at an eighth of the resolution, to scores at every
pixel: a 3×3 convolution to C maps with bilinear upsampling; the same with a learned
transposed convolution (16×16, stride 8, C to C maps); and DUC with cells of 2 pixels
(C·16 maps, then bilinear ×2) and of 1 pixel (C·64 maps). They take turns; ratios are
medians, relative to bilinear upsampling in the same round.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax import lax
from tabulate import tabulate

from dilax.ops import depth_to_space, dilated_conv, upsample_bilinear
from dilax.runtime import jit

_CELLS = flags.DEFINE_integer(
    "cells", 60, "Side of the feature maps, in cells.", lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    "features", 512, "Channels of the feature maps.", lower_bound=1
)
_CLASSES = flags.DEFINE_integer("classes", 19, "Number of classes.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds.", lower_bound=1)

Params = dict[str, jax.Array]


def heads(features: int, classes: int) -> dict[str, tuple[Callable, Params]]:
    """Return, by name, (function of parameters and features, its parameters)."""

    def params(maps: int, **more: tuple[int, ...]) -> Params:
        rng = np.random.default_rng(0)
        shapes = {"kernel": (3, 3, features, maps), **more}
        return {
            name: jnp.asarray(rng.normal(0, 0.01, shape), jnp.float32)
            for name, shape in shapes.items()
        }

    return {
        "bilinear ×8": (_bilinear, params(classes)),
        "transposed convolution ×8": (
            _transposed,
            params(classes, up=(16, 16, classes, classes)),
        ),
        "DUC, cells of 2 pixels": (_duc_of_2, params(classes * 16)),
        "DUC, cells of 1 pixel": (_duc_of_1, params(classes * 64)),
    }


def _scores(params: Params, x: jax.Array) -> jax.Array:
    return dilated_conv(x, params["kernel"], padding="same")


def _bilinear(params: Params, x: jax.Array) -> jax.Array:
    return upsample_bilinear(_scores(params, x), 8, "centred")


def _transposed(params: Params, x: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        _scores(params, x),
        params["up"],
        (1, 1),
        ((11, 11), (11, 11)),
        lhs_dilation=(8, 8),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _duc_of_2(params: Params, x: jax.Array) -> jax.Array:
    return upsample_bilinear(depth_to_space(_scores(params, x), 4), 2, "centred")


def _duc_of_1(params: Params, x: jax.Array) -> jax.Array:
    return depth_to_space(_scores(params, x), 8)


def gradient(head: Callable) -> Callable:
    """Return the gradient of a head's squared scores by parameters and features."""
    return jax.grad(lambda params, x: (head(params, x) ** 2).mean(), (0, 1))


def time_in_turn(
    functions: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of each function in each round, in turn, once compiled."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows(side: int, features: int, classes: int, repeats: int) -> list[list[str]]:
    """Return a row per head: parameters, then ms and ratio, forward and gradient."""
    found = heads(features, classes)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(1, side, side, features)), jnp.float32)
    columns = []
    for way in (lambda head: head, gradient):
        compiled = {name: jit(way(head)) for name, (head, _) in found.items()}
        calls = {n: (lambda f=f, p=found[n][1]: f(p, x)) for n, f in compiled.items()}
        columns.append(time_in_turn(calls, repeats))
    table = []
    for name, (_, params) in found.items():
        row = [name, f"{sum(leaf.size for leaf in params.values()) / 1e6:.2f}"]
        for seconds in columns:
            pairs = zip(seconds[name], seconds["bilinear ×8"], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            row += [f"{1e3 * statistics.median(seconds[name]):.1f}", f"{ratio:.1f}"]
        table.append(row)
    return table


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    sizes = _CELLS.value, _FEATURES.value, _CLASSES.value
    print(
        f"{sizes[0]}² cells of {sizes[1]} features to {8 * sizes[0]}² pixels of "
        f"{sizes[2]} classes; jax {jax.__version__}, {jax.default_backend()}\n"
    )
    headers = ["", "parameters, M", "forward, ms", "ratio", "gradients, ms", "ratio"]
    table = rows(*sizes, _REPEATS.value)
    print(tabulate(table, headers, "github", disable_numparse=True))


if __name__ == "__main__":
    app.run(main)
