"""Convolutions and the pool after them, run as one, where that is faster.

On CPUs in bands of rows; on TPUs in strips and pairs of columns. The results are those
of one layer after the other.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from dilax.models.layers import DilatedConv
from dilax.ops import max_pool
from dilax.ops.lowerings import direct, pair_kernel
from dilax.ops.pooling import max_pool_pairs

_BAND_BYTES = 2**23  # of the largest map of a band, to stay in the cache
_TPU_BATCH = 8  # TPUs keep the maps of eight examples side by side
_DEVICES = contextvars.ContextVar("devices", default=1)


@contextlib.contextmanager
def examples_over(devices: int) -> Iterator[None]:
    """Inside, examples are divided over this number of devices."""
    token = _DEVICES.set(devices)
    try:
        yield
    finally:
        _DEVICES.reset(token)


class Block(NamedTuple):
    """Valid convolutions, each followed by a ReLU, and a max pool.

    Attributes:
        convs: the convolutions.
        pool: side of the pool's windows, which is also its stride; 1: no pool.
    """

    convs: Sequence[DilatedConv]
    pool: int

    @property
    def lost(self) -> int:
        """Rows, and columns, that the convolutions take from a map."""
        return sum(conv.dilation * (conv.kernel_size - 1) for conv in self.convs)

    def run(self, params: Sequence[Any], x: Any) -> Any:
        """Run one layer after the other."""
        for conv, layer in zip(self.convs, params, strict=True):
            x = nn.relu(jnp.asarray(conv.apply({"params": layer}, x)))
        return max_pool(x, self.pool) if self.pool > 1 else x


def way_to_run(x, block: Block) -> Callable[[Sequence[Any], Any], Any] | None:
    """Return a function of the layers' parameters and the map, or None.

    Args:
        x: the map, (b, h, w, c).
        block: the layers.

    Returns:
        None where layer by layer is best.
    """
    if not all(isinstance(n, int) for n in x.shape):  # in an export
        return None
    if jax.default_backend() == "tpu":
        strips, step = _strips(x.shape, block)
        return _in_strips(block, strips, step) if strips > 1 else _pairs(x, block)
    if jax.default_backend() == "cpu" and (rows := _rows_of_band(x, block)):
        return _in_bands(block, rows)
    return None


def _strips(shape: tuple[int, ...], block: Block) -> tuple[int, int]:
    """Return into how many strips of columns to divide a map, and their distance.

    Of fewer than eight examples, the TPU's compiler cuts strips itself, before every
    convolution. For gradients, it copies their borders from strip to strip each time,
    while strips that overlap by all that the block's convolutions take are cut once.
    """
    batch, _, width, _ = shape
    columns, part = divmod(width - block.lost, block.pool)
    count = -(-_TPU_BATCH * _DEVICES.get() // batch)
    step = block.pool * -(-columns // count)
    if part or step < block.lost:  # they would overlap too much
        return 1, width
    return count, step


def _in_strips(block: Block, count: int, step: int) -> Callable:
    lost = block.lost

    def whole(params, x):
        return (_pairs(x, block) or block.run)(params, x)

    def strips(params, x):
        beyond = count * step + lost - x.shape[2]
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, beyond), (0, 0)))
        cut = [padded[:, :, i * step : (i + 1) * step + lost] for i in range(count)]
        # Example by example, so that each device keeps its own.
        y = whole(params, jnp.stack(cut, 1).reshape(-1, *cut[0].shape[1:]))
        parts = jnp.moveaxis(y.reshape(len(x), count, *y.shape[1:]), 1, 0)
        columns = (x.shape[2] - lost) // block.pool
        return jnp.concatenate(list(parts), 2)[:, :, :columns]

    return _with_gradients_of(strips, whole)


def _with_gradients_of(function: Callable, whole: Callable) -> Callable:
    """Return `whole`, but the other function, of the same values, for gradients."""
    run = jax.custom_vjp(whole)
    run.defvjp(lambda *given: jax.vjp(function, *given), lambda pull, y: pull(y))
    return run


def _pairs(x, block: Block) -> Callable | None:
    """Return a function that treats columns 2j and 2j + 1 as one, if that is possible.

    TPUs store and multiply 128 channels at a time, so that maps of 64 or fewer waste
    half of their memory and of their time.
    """
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0 and block.pool == 2
    fits = even and all(
        conv.kernel_size == 3 and conv.dilation == 1 and conv.features <= 64
        for conv in block.convs
    )
    return functools.partial(_by_pairs, block) if fits else None


def _by_pairs(block: Block, params: Sequence[Any], x):
    b, h, w, c = x.shape
    x = jnp.asarray(x, block.convs[0].dtype).reshape(b, h, w // 2, 2 * c)
    *convs, last = [jax.tree.map(lambda p: jnp.asarray(p, x.dtype), p) for p in params]
    for layer in convs:
        bias = jnp.tile(layer["bias"], 2)
        x = nn.relu(direct(x, pair_kernel(layer["kernel"])) + bias)
    # The maximum comes before bias and ReLU, as the pooled map is smaller.
    return nn.relu(
        max_pool_pairs(direct(x, pair_kernel(last["kernel"]))) + last["bias"]
    )


def _rows_of_band(x, block: Block) -> int:
    """Return how many output rows of these layers to compute at a time; 0: all.

    On a CPU, large maps do not fit in the cache. In bands of rows they do, which is
    faster and saves their memory.
    """
    if block.pool == 1:
        return 0
    conv = max(block.convs, key=lambda conv: conv.features)
    row_bytes = len(x) * x.shape[2] * conv.features * jnp.dtype(conv.dtype).itemsize
    band = max(2, _BAND_BYTES // (row_bytes * block.pool))
    return band if 2 * band < x.shape[1] // block.pool else 0


def _in_bands(block: Block, band: int) -> Callable:
    taken = band * block.pool  # input rows, and below those that the layers lose
    lost = block.lost

    def in_bands(params, x):
        count = (x.shape[1] - lost) // taken

        def one(index):
            rows = lax.dynamic_slice_in_dim(x, index * taken, taken + lost, 1)
            return block.run(params, rows)

        y = jnp.moveaxis(lax.map(one, jnp.arange(count)), 0, 1)
        y = y.reshape(len(x), -1, *y.shape[3:])
        rest = x[:, count * taken :]
        if rest.shape[1] <= lost:
            return y
        return jnp.concatenate([y, block.run(params, rest)], 1)

    # With gradients, whole maps are faster: they must be stored anyway.
    return _with_gradients_of(block.run, in_bands)
