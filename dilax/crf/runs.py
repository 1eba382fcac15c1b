"""Sums over the entries of each lattice point, sorted into short runs of one point.

Adding scattered entries one by one is slow on CPUs. Runs of a fixed length are gathered
and summed at once instead, and only their sums are scattered.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

_LENGTH = 8


class Runs(NamedTuple):
    """The entries of all points, in runs of at most 8 of one point.

    Attributes:
        values: which value each entry takes.
        weights: of each entry; 0 where the run is shorter.
        points: the point that each run belongs to.
    """

    values: Int[Array, "length runs"]
    weights: Float[Array, "length runs"]
    points: Int[Array, " runs"]

    def sums(self, values: Float[Array, "n k"], count: int) -> Float[Array, "m k"]:
        """The weighed sum of the values around each of `count` points."""
        pairs = zip(self.values, self.weights, strict=True)
        each = sum(values[at] * weight[:, None] for at, weight in pairs)
        sums = jnp.zeros((count, values.shape[1]), values.dtype)
        return sums.at[self.points].add(each)


class SortedEntries(NamedTuple):
    """Entries in blocks, each sorted by point.

    A word holds a point's number and the entry's place in its block, as sorting words
    is several times faster than sorting pairs.
    """

    words: UInt[Array, "rows block"]
    offsets: Int[Array, "rows block"]
    runs: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="count")
def sort_entries(points: Int[Array, "d1 n"], count: int) -> SortedEntries:
    """Sorts the entries, and tells how many runs they make.

    Args:
        points: around each place; the last of `count` takes no entries.
        count: how many points there are.
    """
    entries = points.size
    block = 1 << min(32 - (count - 1).bit_length(), (entries - 1).bit_length())
    listed = jnp.pad(points.T.ravel(), (0, -entries % block), constant_values=count - 1)
    words = listed.astype(jnp.uint32).reshape(-1, block) << _bits(block)
    words = jnp.sort(words | jnp.arange(block, dtype=jnp.uint32), axis=1)
    offsets = _offsets(words >> _bits(block))
    return SortedEntries(words, offsets, (offsets == 0).sum())


@functools.partial(jax.jit, static_argnames=("count", "room"))
def cut_runs(
    entries: SortedEntries, weights: Float[Array, "d1 n"], count: int, room: int
) -> Runs:
    """Cuts sorted entries into runs.

    Args:
        entries: see there.
        weights: of the entries.
        count: of points, as it was sorted.
        room: for runs, at least as many as there are.
    """
    d1, n = weights.shape
    rows, block = entries.words.shape
    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * block
    entry = (first + (entries.words & (block - 1)).astype(jnp.int32)).ravel()
    entry = jnp.minimum(entry, n * d1 - 1)
    points = (entries.words >> _bits(block)).astype(jnp.int32).ravel()
    weight = jnp.where(points == count - 1, 0, weights.T.ravel()[entry])
    offsets = entries.offsets.ravel()
    run = jnp.cumsum(offsets == 0, dtype=jnp.int32) - 1
    at = offsets, run
    return Runs(
        jnp.zeros((_LENGTH, room), jnp.int32).at[at].set(entry // d1),
        jnp.zeros((_LENGTH, room), weights.dtype).at[at].set(weight),
        jnp.full(room, count - 1).at[run].set(points),
    )


def _offsets(points):
    """Place of each entry of sorted points in its run."""
    order = jnp.arange(points.shape[1], dtype=jnp.int32)
    changed = jnp.pad(points[:, 1:] != points[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(changed, order, 0), axis=1)
    return (order - start) % _LENGTH


def _bits(block: int) -> int:
    return block.bit_length() - 1
