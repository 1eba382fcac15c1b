"""What dilax's operators gain over the obvious way to write them, on XLA's CPU backend.

    python benchmarks/cpu.py [--repeats=5]

Each row runs two ways to compute the same thing in turn, A B A B …, checks that they
agree, and prints the median of the ratios: machines are noisy, ratios within a run less
so. Memory stays under 2 GB; all rows take about two minutes on two cores.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn
from jax import lax
from tabulate import tabulate

from dilax.ops import dilated_conv, jit, max_pool, upsample_bilinear

_REPEATS = flags.DEFINE_integer("repeats", 5, "Pairs of runs a row.", lower_bound=1)


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _transposed_conv(x: jax.Array) -> jax.Array:
    """Bilinear ×8 as a grouped convolution of a dilated input."""
    ramp = 1 - np.abs(np.arange(16) - 7.5) / 8
    kernel = np.tile(np.outer(ramp, ramp)[:, :, None, None], (1, 1, 1, x.shape[-1]))
    return lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, jnp.float32),
        (1, 1),
        ((11, 11), (11, 11)),
        lhs_dilation=(8, 8),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _pooled(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (2, 2), (2, 2))


def _gradient(function):
    return jax.grad(lambda *args: (function(*args) ** 2).sum())


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return dilated_conv(x, kernel, dilation=2, padding="same")


def _looped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.map(lambda part: _conv(part, kernel), x[None])[0]


def rows():
    """(title, ours, obvious, arguments) of each comparison."""
    maps, wide = _random(1, 66, 66, 21), _random(1, 102, 102, 256)
    kernel, pool = _random(3, 3, 256, 256) / 48, _random(2, 313, 313, 64)
    fast, slow = jit(_conv), jax.jit(_conv)
    yield "conv5 ÷ 2, dilation 2, forward", fast, slow, (wide, kernel)
    ours, plain = jit(_gradient(_conv)), jax.jit(_gradient(_conv))
    yield "conv5 ÷ 2, dilation 2, gradient", ours, plain, (wide, kernel)
    yield "the same outside and inside a loop", fast, jit(_looped), (wide, kernel)
    centred = jit(lambda x: upsample_bilinear(x, 8, "centred"))
    yield "bilinear ×8 of 66²×21, forward", centred, jit(_transposed_conv), (maps,)
    yield "max pool 313²×64, forward", jit(max_pool), jit(_pooled), (pool[:, :-1, :-1],)
    ours, plain = jit(_gradient(max_pool)), jit(_gradient(_pooled))
    yield "max pool 313²×64, gradient", ours, plain, (pool[:, :-1, :-1],)


def _seconds(function, arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def _compare(title, ours, obvious, arguments, repeats: int) -> list:
    a, b = ours(*arguments), obvious(*arguments)  # compiles
    error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
    pairs = [
        (_seconds(ours, arguments), _seconds(obvious, arguments))
        for _ in range(repeats)
    ]
    ratio = statistics.median(slow / fast for fast, slow in pairs)
    fast, slow = (
        1e3 * statistics.median(column) for column in zip(*pairs, strict=True)
    )
    return [title, f"{fast:.1f}", f"{slow:.1f}", f"{ratio:.1f}×", f"{error:.0e}"]


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    table = [_compare(*row, _REPEATS.value) for row in rows()]
    headers = ["", "dilax, ms", "obvious, ms", "ratio", "difference"]
    print(f"jax {jax.__version__}, {jax.default_backend()}\n")
    print(tabulate(table, headers, "github", disable_numparse=True))


if __name__ == "__main__":
    app.run(main)
