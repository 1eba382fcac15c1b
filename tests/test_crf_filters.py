"""Gaussian filters: the exact sum, the grid's, and the permutohedral lattice."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_scenes import gaussian_sums
from jax.test_util import check_grads

from dilax.crf import (
    ExactFilter,
    GridFilter,
    build_lattice,
    gaussian_filter,
    lattice,
    lattice_points,
    with_lattice,
)
from dilax.crf.filters import cut_radius, normalize
from dilax.crf.kernels import spatial_features
from dilax.runtime import jit

# Compiled, because one by one their many small steps take longer to compile.
simplices, fingerprints = jax.jit(lattice.simplices), jax.jit(lattice.fingerprints)
find_keys = jax.jit(lattice_points.find_keys)
number_keys = jax.jit(lattice_points.number_keys)
applied = jax.jit(lambda filter, values: filter(values))

# The exact filter: a double loop, finite differences, and memory.

BLOCKS = [(256, 1024), (4, 3), (7, 5), (1, 50)]


def draw(n=23, d=3, k=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * 1.5, rng.normal(size=(n, k))


@pytest.mark.parametrize("rows, columns", BLOCKS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_exact_filter_agrees_with_a_double_loop(rows, columns, masked):
    features, values = draw()
    valid = np.arange(len(values)) % 3 > 0 if masked else np.ones(len(values), bool)
    values[~valid] = np.nan  # they give nothing
    with jax.enable_x64(True):
        mask = jnp.asarray(valid) if masked else None
        filter = ExactFilter(jnp.asarray(features), mask, rows, columns)
        out = np.asarray(filter(jnp.asarray(values)))
    expected = gaussian_sums(features[valid], values[valid])
    np.testing.assert_allclose(out[valid], expected, atol=1e-12)
    assert not out[~valid].any()


def test_float32_keeps_six_digits_far_from_the_origin():
    features, values = draw()
    features = np.float32(features + 150)
    out = ExactFilter(jnp.asarray(features))(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(out, gaussian_sums(features, values), atol=2e-6)


@pytest.mark.parametrize("valid", [False, True])
def test_gradients_of_the_exact_filter_pass_finite_differences(valid):
    features, values = draw(11)
    with jax.enable_x64(True):
        mask = jnp.arange(11) % 4 > 0 if valid else None

        def loss(features, values):
            filter = ExactFilter(jnp.asarray(features), mask, 4, 3)
            return jnp.sum(filter(jnp.asarray(values)) ** 3)

        points = jnp.asarray(features), jnp.asarray(values)
        check_grads(loss, points, 1, ["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "grid"])
def test_transpose_is_the_filter_itself(kind):
    features, values = (jnp.asarray(x, jnp.float32) for x in draw(20 * 18))
    filter = ExactFilter(features, None, 4, 3)
    if kind == "grid":
        filter = GridFilter(jnp.float32(1.0), None, 20, 18, 4)
    pulled = jax.jit(lambda x: jax.vjp(filter, x)[1](x)[0])(values)
    np.testing.assert_allclose(pulled, applied(filter, values), rtol=1e-4, atol=1e-5)


def test_memory_grows_with_points_and_not_with_pairs():
    n = 20_000  # all pairs would be 1.6 GB

    def slopes(features, values):
        return jax.grad(lambda f, v: jnp.sum(ExactFilter(f)(v) ** 2), (0, 1))(
            features, values
        )

    compiled = jit(slopes).lower(jnp.ones((n, 5)), jnp.ones((n, 4))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6


def test_a_batch_is_filtered_exactly_one_by_one():
    draws = [draw(seed=s) for s in range(3)]
    features, values = (np.float32(x) for x in zip(*draws, strict=True))
    out = jax.vmap(lambda f, v: ExactFilter(f, None, 4, 3)(v))(features, values)
    for one, f, v in zip(out, features, values, strict=True):
        np.testing.assert_allclose(one, gaussian_sums(f, v), rtol=1e-5, atol=1e-5)


def test_one_function_takes_a_method_and_refuses_others(unchecked):
    features, values = (jnp.asarray(x, jnp.float32) for x in draw())
    out = gaussian_filter(values, features, method="exact")
    expected = gaussian_sums(features, values)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="method='fast': must be one"):
        gaussian_filter(values, features, method="fast")
    with pytest.raises(ValueError, match="3 values and 2 features"):
        gaussian_filter(jnp.ones((3, 1)), jnp.ones((2, 1)))


# The grid's filter: the exact filter is its oracle.


def draw_grid(height, width, k=2):
    values = np.random.default_rng(0).random((height * width, k))
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (9, 1), (5, 7)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 30.0])
def test_the_grid_filter_agrees_with_a_double_loop(sides, sigma):
    values = draw_grid(*sides)
    out = applied(GridFilter(jnp.float32(sigma), None, *sides), values)
    y, x = np.divmod(np.arange(len(values)), sides[1])
    expected = gaussian_sums(np.stack([x, y], 1) / sigma, values)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("sides", [(37, 41), (32, 64), (33, 20), (100, 9)])
@pytest.mark.parametrize("radius", [5, 8, 64, None])
def test_cut_at_five_bandwidths_differs_by_what_was_left_out(sides, radius):
    values = draw_grid(*sides)
    exact = applied(ExactFilter(spatial_features(*sides, 1.0)), values)
    out = applied(GridFilter(jnp.float32(1.0), None, *sides, radius), values)
    np.testing.assert_allclose(out, exact, rtol=3e-6)


def test_cutting_leaves_out_what_the_docstring_says():
    values = jnp.ones((101, 1))
    exact = applied(GridFilter(jnp.float32(3.0), None, 101, 1), values)[50, 0]
    cut = applied(GridFilter(jnp.float32(3.0), None, 101, 1, radius=6), values)[50, 0]
    taps = np.exp(-0.5 * (np.arange(-6, 7) / 3) ** 2).sum()
    np.testing.assert_allclose([exact, cut], [3 * np.sqrt(2 * np.pi), taps], rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0, 3.3, 50.0])
def test_radii_reach_five_bandwidths_and_are_few(sigma):
    radius = cut_radius(sigma)
    assert radius >= 5 * sigma
    assert np.log2(radius).is_integer()


@pytest.mark.parametrize("radius", [2, None])
def test_padding_of_a_grid_gives_nothing(radius):
    values = draw_grid(9, 12)
    inside = np.zeros((9, 12), bool)
    inside[:7, :11] = True
    noisy = jnp.where(jnp.asarray(inside.ravel())[:, None], values, jnp.nan)
    sigma, valid = jnp.float32(0.4), jnp.asarray(inside.ravel())
    padded = applied(GridFilter(sigma, valid, 9, 12, radius), noisy).reshape(9, 12, 2)
    inner = values.reshape(9, 12, 2)[:7, :11].reshape(-1, 2)
    alone = applied(GridFilter(sigma, None, 7, 11, radius), inner).reshape(7, 11, 2)
    np.testing.assert_allclose(padded[:7, :11], alone, rtol=1e-6)


def test_sums_of_ones_are_the_same_compiled_with_our_options():
    """XLA's CPU backend multiplies by constant ones wrongly with one of them."""

    def weights():
        filter = GridFilter(jnp.float32(1.5), None, 12, 16)
        return normalize(filter, "after", 12 * 16).after

    np.testing.assert_allclose(jit(weights)(), weights(), rtol=1e-5)


# The lattice: a plain one, and the exact sum.


def cloud(n, d, spread=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return spread * rng.normal(size=(n, d)), rng.random((n, 3))


def plainly(features, values):
    """The lattice filter point by point, with a dictionary."""
    places = jax.tree.map(np.asarray, simplices(jnp.asarray(features)))
    d1, n = places.weights.shape
    sums = collections.defaultdict(lambda: np.zeros(values.shape[1]))
    around = []
    for i in range(n):
        for r in range(d1):
            shift = np.where(places.ranks[:, i] < d1 - r, r, r - d1)
            around.append(tuple(d1 * places.cells[:, i] + shift))
            sums[around[-1]] += places.weights[r, i] * values[i]
    for axis in range(d1):
        step = np.ones(d1, int)
        step[axis] -= d1
        sides = [
            {tuple(np.array(p) + s): v for p, v in sums.items()} for s in (step, -step)
        ]
        nothing = np.zeros(values.shape[1])
        sums = {
            p: v + sum(side.get(p, nothing) for side in sides) / 2
            for p, v in sums.items()
        }
    read = np.array([sums[p] for p in around]).reshape(n, d1, -1)
    return np.einsum("rn,nrk->nk", places.weights, read) / (1 + 2.0 ** (1 - d1))


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("traced", [False, True])
def test_the_lattice_equals_the_plain_filter(d, traced):
    with jax.enable_x64(True):
        features, values = map(jnp.asarray, cloud(120, d))

        def run(features):
            return with_lattice(features, None, lambda g: g(values))

        found = (jax.jit(run) if traced else run)(features)
        expected = plainly(np.asarray(features), np.asarray(values))
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("d", [2, 5])
def test_the_lattice_is_near_the_exact_filter_when_divided_by_that_of_ones(d):
    features, values = cloud(2000, d, spread=1.0)
    lattice = build_lattice(jnp.asarray(features, jnp.float32))
    ones = jnp.asarray(np.c_[values, np.ones(2000)], jnp.float32)
    truth = ExactFilter(jnp.asarray(features, jnp.float32))(ones)
    both = lattice(ones)
    found, expected = both[:, :-1] / both[:, -1:], truth[:, :-1] / truth[:, -1:]
    assert np.abs(found - expected).mean() < 0.01


def test_equal_features_are_averaged_whatever_their_order():
    features = jnp.asarray(np.repeat(cloud(1, 5)[0], 40, axis=0), jnp.float32)
    values = jnp.asarray(np.random.default_rng(1).random((40, 2)), jnp.float32)
    found = build_lattice(features)(values)
    np.testing.assert_allclose(found, jnp.tile(found[:1], (40, 1)), rtol=1e-6)
    ones = build_lattice(features)(jnp.ones((40, 1)))
    np.testing.assert_allclose(found[0] / ones[0], values.mean(0), rtol=1e-5)


def test_transposed_filter_is_the_gradient():
    with jax.enable_x64(True):
        features, values = map(jnp.asarray, cloud(80, 5))
        lattice = build_lattice(features)
        check_grads(
            lambda v: lattice(jnp.asarray(v)), (values,), order=1, modes=["rev"]
        )
        matrix = jax.vmap(lattice, in_axes=1, out_axes=1)(jnp.eye(80)[..., None])[
            ..., 0
        ]
        back = jax.vjp(lattice, jnp.zeros((80, 1)))[1]
        rows = jax.vmap(lambda e: back(e[:, None])[0][:, 0])(jnp.eye(80))
        np.testing.assert_allclose(rows, matrix, atol=1e-12)


def test_gradient_by_features_passes_finite_differences():
    with jax.enable_x64(True):
        features, values = map(jnp.asarray, cloud(80, 5))

        def loss(features):
            return (build_lattice(jnp.asarray(features))(values) ** 2).sum()

        check_grads(loss, (features,), order=1, modes=["rev"], eps=1e-7, rtol=1e-4)


def test_places_that_are_not_valid_give_and_get_nothing():
    features, values = cloud(100, 5)
    features, values = (jnp.asarray(x, jnp.float32) for x in (features, values))
    valid = jnp.arange(100) % 3 > 0
    alone = build_lattice(features[valid])(values[valid])
    for way in (build_lattice, jax.jit(build_lattice)):
        found = way(features, valid)(values)
        np.testing.assert_allclose(found[valid], alone, atol=1e-6)
        assert (found[~valid] == 0).all()


def test_batches_are_filtered_as_one_by_one():
    features = jnp.asarray(np.stack([cloud(60, 3, seed=s)[0] for s in (0, 1)]))
    values = jnp.asarray(np.stack([cloud(60, 3, seed=s)[1] for s in (0, 1)]))
    both = jax.vmap(lambda f, v: with_lattice(f, None, lambda g: g(v)))(
        features, values
    )
    for i in range(2):
        alone = build_lattice(features[i])(values[i])
        np.testing.assert_allclose(both[i], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spread", [0.1, 10.0])
def test_a_traced_lattice_has_room_for_few_points_and_for_many(spread):
    features, values = (jnp.asarray(x, jnp.float32) for x in cloud(1000, 5, spread))
    found = jax.jit(lambda f: with_lattice(f, None, lambda g: g(values)))(features)
    expected = build_lattice(features)(values)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_buckets_are_few_and_never_too_small():
    sizes = [lattice.bucket(n) for n in range(1, 1000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * n for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 20


# The lattice's geometry.


@pytest.fixture(params=[1, 2, 5])
def places(request):
    rng = np.random.default_rng(request.param)
    return simplices(
        jnp.asarray(3 * rng.normal(size=(200, request.param)), jnp.float32)
    )


def coordinates(places):
    """The points around each place: (remainder, coordinate, place)."""
    d1 = len(places.cells)
    remainder = np.arange(d1)[:, None, None]
    ranks, cells = np.asarray(places.ranks), np.asarray(places.cells)
    return d1 * cells + np.where(ranks < d1 - remainder, remainder, remainder - d1)


def test_points_lie_on_the_lattice(places):
    points = coordinates(places)
    assert (points.sum(1) == 0).all()
    d1 = len(points)
    assert (points % d1 == np.arange(d1)[:, None, None]).all()


def test_weights_are_barycentric(places):
    assert (places.weights >= -1e-6).all()
    np.testing.assert_allclose(places.weights.sum(0), 1, atol=1e-5)


def test_distances_in_the_plane_are_those_of_the_features():
    features = 3 * np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    places = simplices(jnp.asarray(features))
    plane = np.einsum("rn,rin->ni", places.weights, coordinates(places))
    scale = np.sqrt(2 / 3) * 5  # of the plane, for a unit deviation in 4 dimensions
    found = np.linalg.norm(plane[:, None] - plane, axis=-1)
    expected = scale * np.linalg.norm(features[:, None] - features, axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_fingerprints_tell_points_apart(places):
    words = np.asarray(fingerprints(places)).reshape(2, -1).T
    points = coordinates(places).transpose(0, 2, 1).reshape(len(words), -1)
    both = np.unique(np.concatenate([words, points], 1), axis=0)
    assert len(both) == len(np.unique(points, axis=0)) == len(np.unique(words, axis=0))


# The hash table, against NumPy.


def drawn(n, different, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2**32, (2, different), dtype=np.uint32)
    return kinds, kinds[:, rng.integers(0, different, n)]


@pytest.mark.parametrize("different", [1, 30, 5000])
def test_equal_keys_get_equal_numbers_in_the_order_of_the_list(different):
    _, keys = drawn(3000, different)
    table = number_keys(jnp.asarray(keys), jnp.ones(3000, bool))
    _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    np.testing.assert_array_equal(table.numbers, rank[inverse])
    assert int(table.distinct) == len(first)
    np.testing.assert_array_equal(np.nonzero(table.firsts)[0], np.sort(first))


def test_all_keys_different_fill_the_table_and_are_found():
    keys = jnp.stack([jnp.arange(999, dtype=jnp.uint32), jnp.zeros(999, jnp.uint32)])
    table = number_keys(keys, jnp.ones(999, bool))
    np.testing.assert_array_equal(table.numbers, np.arange(999))
    np.testing.assert_array_equal(find_keys(table, keys), np.arange(999))


def test_keys_that_share_a_word_stay_apart():
    keys = jnp.array([[1, 1, 2, 2], [1, 2, 1, 2]], jnp.uint32)
    table = number_keys(keys, jnp.ones(4, bool))
    assert table.numbers.tolist() == [0, 1, 2, 3]


def test_what_is_left_out_has_no_number_and_is_not_found():
    kinds, keys = drawn(500, 100)
    table = number_keys(jnp.asarray(keys), jnp.arange(500) < 40)
    assert (table.numbers[40:] == -1).all() and (table.numbers[:40] >= 0).all()
    there = {tuple(k) for k in keys[:, :40].T}
    found = find_keys(table, jnp.asarray(kinds))
    assert [bool(f >= 0) for f in found] == [tuple(k) in there for k in kinds.T]
