"""What dilax's operators gain on CPUs over the obvious way to write them.

    python benchmarks/cpu.py [--repeats=5]

Each row runs two ways to compute the same thing alternately, A B A B …, checks that
they agree, and prints the median of the ratios of consecutive runs, which are less
noisy than times. It needs less than 2 GB of memory, and two minutes on two cores.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import linen as nn
from jax import lax
from tabulate import tabulate

from dilax.models import FrontEnd
from dilax.ops import max_pool, upsample_bilinear
from dilax.runtime import jit

_REPEATS = flags.DEFINE_integer("repeats", 5, "Pairs of runs per row.", lower_bound=1)


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _transposed_conv(x: jax.Array) -> jax.Array:
    """Upsample by 8, bilinearly, as a grouped convolution of a dilated input."""
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


_NET = FrontEnd(21, width_multiplier=0.25)


def _vgg(params, x: jax.Array) -> jax.Array:
    return _NET.apply({"params": params}, x)


def _one_by_one(params, x: jax.Array):
    parts = [_gradient(_vgg)(params, part[None]) for part in x]
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)


def _looped(params, x: jax.Array):
    def add(total, part):
        one = _gradient(_vgg)(params, part[None])
        return jax.tree.map(jnp.add, total, one), None

    return lax.scan(add, jax.tree.map(jnp.zeros_like, params), x)[0]


def rows():
    """Return (title, dilax's way, the obvious way, arguments) of each comparison."""
    maps, images = _random(1, 66, 66, 21), _random(2, 436, 436, 3)
    pool = _random(2, 313, 313, 64)
    params = jit(_NET.init)(jax.random.key(0), images[:1])["params"]
    fast, slow = jit(_vgg), jax.jit(_vgg)
    yield "front end ÷ 4 at 436², forward", fast, slow, (params, images)
    ours, plain = jit(_gradient(_vgg)), jax.jit(_gradient(_vgg))
    yield "front end ÷ 4 at 436², gradient", ours, plain, (params, images)
    apart = jit(_one_by_one)
    yield "gradients of two images, in a loop", apart, jit(_looped), (params, images)
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
    scales = jax.tree.map(lambda x, y: jnp.abs(x - y).max() / jnp.abs(y).max(), a, b)
    error = float(max(jax.tree.leaves(scales)))
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
    """Print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    table = [_compare(*row, _REPEATS.value) for row in rows()]
    headers = ["", "dilax, ms", "obvious, ms", "ratio", "difference"]
    print(f"jax {jax.__version__}, {jax.default_backend()}\n")
    print(tabulate(table, headers, "github", disable_numparse=True))


if __name__ == "__main__":
    app.run(main)
