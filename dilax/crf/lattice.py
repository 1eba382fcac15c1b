"""Gaussian filtering with the permutohedral lattice (Adams, Baek & Davis 2010).

Values are splatted onto the lattice points around them, blurred along the lattice's
d + 1 directions, and sliced at the same places. Time is linear in the number of values,
for any bandwidth and any number of dimensions.

In d dimensions, the lattice is in the plane of R^(d+1) whose coordinates sum to 0 (§3).
Its points are the integer ones whose coordinates are all congruent modulo d + 1. Every
place is in a simplex of d + 1 of them, one for each remainder.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from dilax.crf.lattice_points import (
    Runs,
    Table,
    cut_runs,
    find_keys,
    number_keys,
    sort_entries,
)

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
    """Return the simplex of every feature vector, and its place within.

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
    # Barycentric coordinates are differences between what is left over, in descending
    # order. Sums of masks put it in order: sorting so short an axis is slower.
    ordered = [
        sum(jnp.where(ranks[i] == r, left[i], 0) for i in range(d1)) for r in range(d1)
    ]
    inner = [ordered[d1 - 1 - r] - ordered[d1 - r] for r in range(1, d1)]
    weights = jnp.stack([1 + ordered[d1 - 1] - ordered[0], *inner])
    return Simplices(cells, ranks, weights)


def _elevate(features):
    """Return (n, d) features as (d + 1, n) places in the plane."""
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
    """Count the coordinates that exceed each one; ties go to the earlier one."""
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
    """Return 64 bits, in two words, that identify the points of the simplices.

    Each word is linear in the coordinates, so that neighbours differ by constants
    (`neighbour_steps`). Two different points share both words with probability 2^−64.
    """
    d = len(places.cells) - 1
    words = []
    for factors in _factors(d):
        base = _weighted_sum((d + 1) * places.cells[:d], factors)
        rows = []
        for r in range(d + 1):
            offsets = jnp.where(places.ranks[:d] <= d - r, r, r - (d + 1))
            rows.append(base + _weighted_sum(offsets, factors))
        words.append(jnp.stack(rows))
    return jnp.stack(words)


def neighbour_steps(d: int) -> list[tuple[int, int]]:
    """Return what to add to a point's fingerprint to reach a neighbour.

    There is one step for each of the d + 1 directions; subtracting it reaches the
    neighbour on the other side. Along direction a, coordinate a falls by d and the
    others rise by 1.
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


def _weighted_sum(rows, factors):
    return sum(
        row.astype(jnp.uint32) * jnp.uint32(f)
        for row, f in zip(rows, factors, strict=True)
    )


# A traced lattice has room for these parts of the worst case, but for no fewer points
# than this: few sizes compile, and small ones cost little.
_LEVELS = (32, 4, 1)
_LEAST_ROOM = 4096
T = TypeVar("T")


class LatticeFilter(NamedTuple):
    """Σ_j exp(−½|f_i − f_j|²) v_j by the permutohedral lattice, for features f.

    Called on values (n, k) it gives (n, k). It approximates the sum, as the public
    implementations do: blurred by (½, 1, ½) along each direction and divided by
    1 + 2^(−d). A pytree; linear in the values, and differentiable by the features that
    it was built from.

    Attributes:
        weights: barycentric coordinates of the places.
        points: the lattice points around each place.
        neighbours: of each point, on both sides, in each direction. The last point is
            always empty, and replaces missing neighbours.
        runs: the entries sorted by point, which CPUs sum faster; or None.

    Example:
        >>> blur = build_lattice(jnp.zeros((3, 1)))
        >>> blur(jnp.ones((3, 1))).shape
        (3, 1)
    """

    weights: Float[Array, "d1 n"]
    points: Int[Array, "d1 n"]
    neighbours: Int[Array, "d1 2 m"]
    runs: Runs | None = None

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]:
        structure = self.points, self.neighbours, self.runs
        return _filtered(self.weights, values, structure)


def build_lattice(
    features: Float[Array, "n d"], valid: Bool[Array, " n"] | None = None
) -> LatticeFilter:
    """Build the lattice around feature vectors.

    Outside of `jax.jit`, the lattice's points are counted first and its arrays are made
    just large enough (rounded up, so that few sizes compile). Inside, shapes are
    static, with room for the worst case, (d + 1) n points; see also `with_lattice`.

    Args:
        features: in units of the Gaussian's standard deviation, finite.
        valid: places that take part; the others add nothing and receive 0.

    Example:
        >>> lattice = build_lattice(jnp.array([[0.0, 0.0], [9.0, 9.0]]))
        >>> v = lattice(jnp.array([[1.0], [0.0]]))
        >>> bool(v[0, 0] > 0.5), float(v[1, 0])
        (True, 0.0)

    Source: Adams et al. 2010; Krähenbühl & Koltun 2011, section 4.
    """
    if valid is None:
        valid = jnp.ones(len(features), bool)
    weights, table = _number_points(features, valid)
    if isinstance(features, jax.core.Tracer):
        return _link(weights, table, weights.size)
    capacity = max(_LEAST_ROOM, _power_of_two(int(table.distinct)))
    lattice = _link(weights, table, capacity)
    if jax.default_backend() != "cpu":
        return lattice
    entries = sort_entries(lattice.points, capacity + 1)
    room = bucket(int(entries.runs))
    runs = cut_runs(entries, lattice.weights, capacity + 1, room)
    return lattice._replace(runs=runs)


def with_lattice(
    features: Float[Array, "n d"],
    valid: Bool[Array, " n"] | None,
    use: Callable[[LatticeFilter], T],
) -> T:
    """Return `use` of the lattice, whose size is chosen while the program runs.

    This is for traced features: shapes are static there, and the worst case is many
    times larger than the lattices of images. `use` is compiled for a few sizes.

    Args:
        features: as for `build_lattice`.
        valid: as for `build_lattice`.
        use: is traced once for each size.

    Example:
        >>> ones = jnp.ones((3, 1))
        >>> with_lattice(jnp.zeros((3, 1)), None, lambda blur: blur(ones).shape)
        (3, 1)
    """
    if not isinstance(features, jax.core.Tracer):
        return use(build_lattice(features, valid))
    if valid is None:
        valid = jnp.ones(len(features), bool)
    weights, table = _number_points(features, valid)
    worst = weights.size
    rooms = sorted({min(worst, max(worst // n, _LEAST_ROOM)) for n in _LEVELS})
    level = sum((table.distinct > room).astype(jnp.int32) for room in rooms[:-1])
    return jax.lax.switch(
        level, [lambda room=room: use(_link(weights, table, room)) for room in rooms]
    )


def bucket(count: int) -> int:
    """Return the first of 1, 2, 3, 4, 6, 8, 12, 16, … that is at least `count`."""
    power = _power_of_two(count)
    return power * 3 // 4 if count <= power * 3 // 4 else power


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


@jax.jit
def _number_points(features, valid):
    """Return the weights of all places, and the points around them by number.

    Entries are listed place by place, so that points near each other in the image are
    near each other in memory.
    """
    places = simplices(features)
    keys = fingerprints(places).transpose(0, 2, 1).reshape(2, -1)
    table = number_keys(keys, jnp.repeat(valid, len(places.weights)))
    return places.weights, table


@functools.partial(jax.jit, static_argnames="capacity")
def _link(weights, table: Table, capacity: int) -> LatticeFilter:
    """Return the filter, with room for `capacity` points and the empty one."""
    d1, n = weights.shape
    numbers = table.numbers.reshape(n, d1).T
    # Entries that are not valid, or for which there is no room, go to the empty point.
    points = jnp.where((numbers < 0) | (numbers >= capacity), capacity, numbers)
    # Each point is represented by the first entry that has its number.
    entries = jnp.arange(n * d1, dtype=jnp.int32)
    at = jnp.where(table.firsts, table.numbers, capacity)
    firsts = jnp.zeros(capacity, jnp.int32).at[at].set(entries, mode="drop")
    keys = table.keys[:, firsts]
    known = jnp.arange(capacity) < table.distinct
    steps = neighbour_steps(d1 - 1)
    neighbours = [_neighbours(table, keys, known, step) for step in steps]
    weights = jnp.where(points == capacity, 0, weights)
    return LatticeFilter(weights, points, jnp.stack(neighbours))


def _neighbours(table: Table, keys, known, step):
    """Return the neighbours of every point, and of the empty one, in a direction."""
    empty = len(known)
    above = find_keys(table, keys + jnp.array(step, jnp.uint32)[:, None])
    above = jnp.where(known & (above >= 0) & (above < empty), above, empty)
    # If b is above a, a is below b: only one side is looked up in the table.
    order = jnp.arange(empty, dtype=jnp.int32)
    below = jnp.full(empty + 1, empty, jnp.int32).at[above].set(order)
    return jnp.stack([jnp.append(above, empty), below.at[empty].set(empty)])


@jax.custom_vjp
@jax.jit
def _filtered(weights, values, structure):
    sums = _blur(_splat(weights, values, structure), structure)
    return _slice(weights, sums, structure)


def _forward(weights, values, structure):
    return _filtered(weights, values, structure), (weights, values, structure)


@jax.jit
def _backward(residuals, gradient):
    """Apply the transposed filter: the same, with its directions in reverse order."""
    weights, values, structure = residuals
    down = _blur(_splat(weights, gradient, structure), structure, reverse=True)
    up = _blur(_splat(weights, values, structure), structure)
    by_weight = [
        _scale(weights) * ((gradient * up[at]).sum(-1) + (values * down[at]).sum(-1))
        for at in structure[0]
    ]
    return jnp.stack(by_weight), _slice(weights, down, structure), None


_filtered.defvjp(_forward, _backward)


def _splat(weights, values, structure):
    """Distribute (n, k) values among the points around them: (m, k)."""
    points, neighbours, runs = structure
    count = neighbours.shape[2]
    if runs is not None:
        return runs.sums(values, count)
    sums = jnp.zeros((count, values.shape[1]), values.dtype)
    return sums.at[points].add(weights[..., None] * values)


def _blur(sums, structure, reverse=False):
    """Add half of the neighbours' values, in one direction after another.

    This is a loop because XLA would fuse the directions and compute the inner ones many
    times.
    """

    def blur_along(sums, neighbours):
        above, below = neighbours
        return sums + (sums[above] + sums[below]) / 2, None

    return jax.lax.scan(blur_along, sums, structure[1], reverse=reverse)[0]


def _slice(weights, sums, structure):
    """Interpolate (n, k) values between the points around each place."""
    parts = zip(structure[0], weights, strict=True)
    return _scale(weights) * sum(sums[at] * weight[:, None] for at, weight in parts)


def _scale(weights) -> float:
    """Return the factor that preserves constants, as in the public implementations."""
    return 1 / (1 + 2.0 ** (1 - len(weights)))
