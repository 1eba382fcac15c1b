"""The permutohedral lattice's geometry (Adams, Baek & Davis 2010, sections 3 and 4).

In d dimensions the lattice lies in the plane of R^(d+1) whose coordinates sum to 0.
Its points are the integer ones whose coordinates are all congruent modulo d + 1; every
place lies in a simplex of d + 1 of them, one of each remainder.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B)  # odd, so that powers lose no bits


class Simplices(NamedTuple):
    """The simplices around n places.

    Attributes:
        cells: coordinates of each simplex's point of remainder 0, divided by d + 1.
        ranks: place of each coordinate in the descending order of what is left.
        weights: barycentric coordinates; row r belongs to the point of remainder r.
    """

    cells: Int[Array, "d1 n"]
    ranks: Int[Array, "d1 n"]
    weights: Float[Array, "d1 n"]


def simplices(features: Float[Array, "n d"]) -> Simplices:
    """The simplex of every feature vector, and its place within.

    The plane is scaled so that splatting, blurring and slicing together have the
    variance of a Gaussian of standard deviation 1.

    Args:
        features: in units of the Gaussian's standard deviation.

    Example:
        >>> place = simplices(jnp.array([[0.3, -1.2]]))
        >>> place.weights.shape, bool(abs(place.weights.sum() - 1) < 1e-6)
        ((3, 1), True)

    Source: Adams et al. 2010, sections 3.1 and 3.2.
    """
    above = _elevate(features) / (features.shape[1] + 1)
    d1 = len(above)
    cells = jnp.round(above).astype(jnp.int32)
    left = above - cells
    # Rounding may leave the plane by cells.sum() steps; those with the most left over
    # give back a step each, or those with the least take one.
    ranks = _descending_ranks(left) + cells.sum(0)
    wrap = (ranks < 0).astype(jnp.int32) - (ranks >= d1).astype(jnp.int32)
    cells, ranks = cells + wrap, ranks + d1 * wrap
    left = above - cells
    ordered = [
        sum(jnp.where(ranks[i] == r, left[i], 0) for i in range(d1)) for r in range(d1)
    ]
    inner = [ordered[d1 - 1 - r] - ordered[d1 - r] for r in range(1, d1)]
    weights = jnp.stack([1 + ordered[d1 - 1] - ordered[0], *inner])
    return Simplices(cells, ranks, weights)


def _elevate(features):
    """(n, d) features as (d + 1, n) places in the plane."""
    d = features.shape[1]
    step = np.sqrt(2 / 3) * (d + 1)
    scaled = [
        features[:, i] * (step / np.sqrt((i + 1) * (i + 2))).astype(features.dtype)
        for i in range(d)
    ]
    rows, total = [], jnp.zeros_like(scaled[0])
    for i in range(d, 0, -1):
        rows.append(total - i * scaled[i - 1])
        total = total + scaled[i - 1]
    return jnp.stack([total, *rows[::-1]])


def _descending_ranks(left):
    """How many coordinates of a place exceed each; ties go to the earlier one."""
    d1 = len(left)
    return jnp.stack(
        [
            sum(
                (left[j] >= left[i] if j < i else left[j] > left[i]).astype(jnp.int32)
                for j in range(d1)
                if j != i
            )
            for i in range(d1)
        ]
    )


def fingerprints(places: Simplices) -> UInt[Array, "2 d1 n"]:
    """64 bits, in two words, that tell the points of the simplices apart.

    Each word is linear in the coordinates, so that neighbours differ by constants
    (`neighbour_steps`). Two points share both words by an accident of 1 in 2^64.
    """
    d = len(places.cells) - 1
    words = []
    for factors in _factors(d):
        base = _weighed_sum((d + 1) * places.cells[:d], factors)
        rows = []
        for r in range(d + 1):
            offsets = jnp.where(places.ranks[:d] <= d - r, r, r - (d + 1))
            rows.append(base + _weighed_sum(offsets, factors))
        words.append(jnp.stack(rows))
    return jnp.stack(words)


def neighbour_steps(d: int) -> list[tuple[int, int]]:
    """What to add to the words of a point's fingerprint to reach a neighbour.

    One for each of the d + 1 directions; the neighbour on the other side lies as far
    below. Along direction a, coordinate a falls by d and the others rise by 1.
    """
    steps = []
    for axis in range(d + 1):
        direction = [1 - (d + 1) * (i == axis) for i in range(d)]
        words = (
            sum(s * f for s, f in zip(direction, factors, strict=True)) % 2**32
            for factors in _factors(d)
        )
        steps.append(tuple(words))
    return steps  # type: ignore[return-value]


def _factors(d: int) -> list[list[int]]:
    return [[pow(m, i + 1, 2**32) for i in range(d)] for m in _MULTIPLIERS]


def _weighed_sum(rows, factors):
    return sum(
        row.astype(jnp.uint32) * jnp.uint32(f)
        for row, f in zip(rows, factors, strict=True)
    )
