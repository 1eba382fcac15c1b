"""Numbering the points of a lattice, and sums over the entries of each.

A hash table with static shapes gives equal fingerprints equal numbers, 0, 1, 2, …: all
keys probe at once. In each round, the keys that meet an empty slot claim it, and the
first in order wins. Keys that find themselves in their slot are done, and the others go
on to the next slot of their sequence (double hashing).

Adding scattered entries one by one is slow on CPUs. Instead, entries are sorted into
short runs that belong to one point. Runs have a fixed length, so they are gathered and
summed at once, and only their sums are scattered.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

_EMPTY = 2**31 - 1


class Table(NamedTuple):
    """Distinct keys, numbered in the order in which they first occur.

    Attributes:
        slots: index in the list of the key that each slot holds.
        keys: the list.
        numbers: of every key in the list; −1 for keys that are left out.
        firsts: whether a key is the first of its value in the list.
        distinct: how many different keys there are.
    """

    slots: Int[Array, " slots"]
    keys: UInt[Array, "2 n"]
    numbers: Int[Array, " n"]
    firsts: Bool[Array, " n"]
    distinct: Int[Array, ""]


def number_keys(keys: UInt[Array, "2 n"], valid: Bool[Array, " n"]) -> Table:
    """Number the distinct keys.

    Args:
        keys: 64 bits each, in two words.
        valid: the other keys get no number.

    Example:
        >>> keys = jnp.array([[7, 5, 7, 9], [1, 1, 1, 1]], jnp.uint32)
        >>> number_keys(keys, jnp.array([True, True, True, False])).numbers.tolist()
        [0, 1, 0, -1]
    """
    n = keys.shape[1]
    size = 1 << (4 * n // 3).bit_length()
    order = jnp.arange(n, dtype=jnp.int32)

    def probe(state):
        slots, at, going = state
        # The lowest index wins a slot, so that numbers do not depend on the hardware.
        claims = going & (slots[at] == _EMPTY)
        slots = slots.at[jnp.where(claims, at, size)].min(order, mode="drop")
        going &= ~_holds(slots, at, keys, keys)
        return slots, jnp.where(going, _next(at, keys, size), at), going

    start = jnp.full(size, _EMPTY, jnp.int32), _first(keys, size), valid
    slots, at, _ = jax.lax.while_loop(lambda s: s[2].any(), probe, start)
    # Every key's slot now names the first key of its value.
    owners = slots[at]
    firsts = (owners == order) & valid
    ranks = jnp.cumsum(firsts, dtype=jnp.int32) - 1
    numbers = jnp.where(valid, ranks.at[owners].get(mode="clip"), -1)
    return Table(slots, keys, numbers, firsts, firsts.sum(dtype=jnp.int32))


def find_keys(table: Table, keys: UInt[Array, "2 m"]) -> Int[Array, " m"]:
    """Return the numbers of other keys; −1 for those that the table lacks."""
    size = len(table.slots)

    def probe(state):
        at, going = state
        here = _holds(table.slots, at, table.keys, keys)
        going &= ~here & (table.slots[at] != _EMPTY)
        return jnp.where(going, _next(at, keys, size), at), going

    start = _first(keys, size), jnp.ones(keys.shape[1], bool)
    at, _ = jax.lax.while_loop(lambda s: s[1].any(), probe, start)
    found = _holds(table.slots, at, table.keys, keys)
    return jnp.where(found, table.numbers.at[table.slots[at]].get(mode="clip"), -1)


def _holds(slots, at, listed, keys):
    """Return whether each key is in the slot where it looks."""
    owners = slots[at]
    same = (listed.at[:, owners].get(mode="clip") == keys).all(0)
    return same & (owners != _EMPTY)


def _first(keys, size):
    return (_mixed(keys[0]) & jnp.uint32(size - 1)).astype(jnp.int32)


def _next(at, keys, size):
    step = _mixed(keys[1]) | 1  # odd: the sequence visits every slot
    return ((at.astype(jnp.uint32) + step) & jnp.uint32(size - 1)).astype(jnp.int32)


def _mixed(words):
    """Return words whose bits each depend on all bits of the input."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    return words ^ (words >> 16)


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
        """Return the weighted sum of the values around each of `count` points."""
        pairs = zip(self.values, self.weights, strict=True)
        each = sum(values[at] * weight[:, None] for at, weight in pairs)
        sums = jnp.zeros((count, values.shape[1]), values.dtype)
        return sums.at[self.points].add(each)


class SortedEntries(NamedTuple):
    """Entries in blocks, each sorted by point.

    A word contains a point's number and the entry's place in its block, because sorting
    words is several times faster than sorting pairs.
    """

    words: UInt[Array, "rows block"]
    offsets: Int[Array, "rows block"]
    runs: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="count")
def sort_entries(points: Int[Array, "d1 n"], count: int) -> SortedEntries:
    """Sort the entries, and count the runs that they make.

    Args:
        points: around each place; the last of the `count` points takes no entries.
        count: how many points there are.
    """
    entries = points.size
    block = 1 << min(32 - (count - 1).bit_length(), (entries - 1).bit_length())
    # The point's number is in the high bits of a word, the entry's place in the others.
    listed = jnp.pad(points.T.ravel(), (0, -entries % block), constant_values=count - 1)
    words = listed.astype(jnp.uint32).reshape(-1, block) << _bits(block)
    words = jnp.sort(words | jnp.arange(block, dtype=jnp.uint32), axis=1)
    offsets = _offsets(words >> _bits(block))
    return SortedEntries(words, offsets, (offsets == 0).sum())


@functools.partial(jax.jit, static_argnames=("count", "room"))
def cut_runs(
    entries: SortedEntries, weights: Float[Array, "d1 n"], count: int, room: int
) -> Runs:
    """Cut sorted entries into runs.

    Args:
        entries: from `sort_entries`.
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
    # A run begins where the offset is 0: with a point, and after 8 of its entries.
    run = jnp.cumsum(offsets == 0, dtype=jnp.int32) - 1
    at = offsets, run
    return Runs(
        jnp.zeros((_LENGTH, room), jnp.int32).at[at].set(entry // d1),
        jnp.zeros((_LENGTH, room), weights.dtype).at[at].set(weight),
        jnp.full(room, count - 1).at[run].set(points),
    )


def _offsets(points):
    """Return the place of each entry of sorted points in its run."""
    order = jnp.arange(points.shape[1], dtype=jnp.int32)
    changed = jnp.pad(points[:, 1:] != points[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(changed, order, 0), axis=1)
    return (order - start) % _LENGTH


def _bits(block: int) -> int:
    return block.bit_length() - 1
