"""Filtering with the permutohedral lattice, against a plain one and the exact sum."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dilax.crf import build_lattice, with_lattice
from dilax.crf.lattice import bucket, simplices


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


def exactly(features, values):
    squares = ((features[:, None] - features) ** 2).sum(-1)
    return np.exp(-squares / 2) @ values


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("way", ["eager", "capacity", "traced"])
def test_equals_the_plain_filter(d, way):
    with jax.enable_x64(True):
        features, values = map(jnp.asarray, cloud(120, d))
        if way == "traced":
            found = jax.jit(lambda f: with_lattice(f, None, lambda g: g(values)))(
                features
            )
        else:
            capacity = 120 * (d + 1) if way == "capacity" else None
            found = build_lattice(features, capacity=capacity)(values)
        expected = plainly(np.asarray(features), np.asarray(values))
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("d", [2, 5])
def test_is_near_the_exact_filter_when_divided_by_that_of_ones(d):
    features, values = cloud(2000, d, spread=1.0)
    lattice = build_lattice(jnp.asarray(features, jnp.float32))
    both = lattice(jnp.asarray(np.c_[values, np.ones(2000)], jnp.float32))
    truth = exactly(features, np.c_[values, np.ones(2000)])
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


@pytest.mark.slow
@pytest.mark.parametrize("room", [None, 480])
def test_gradient_by_features_passes_finite_differences(room):
    with jax.enable_x64(True):
        features, values = map(jnp.asarray, cloud(80, 5))

        def loss(features):
            features = jnp.asarray(features)
            if room is None:
                total = with_lattice(features, None, lambda g: g(values))
            else:
                total = build_lattice(features, capacity=room)(values)
            return (total**2).sum()

        check_grads(loss, (features,), order=1, modes=["rev"], eps=1e-7, rtol=1e-4)


@pytest.mark.slow
def test_places_that_are_not_valid_give_and_get_nothing():
    features, values = cloud(100, 5)
    features, values = (jnp.asarray(x, jnp.float32) for x in (features, values))
    valid = jnp.arange(100) % 3 > 0
    for way in (build_lattice, lambda f, v: build_lattice(f, v, 600)):
        found = way(features, valid)(values)
        alone = build_lattice(features[valid])(values[valid])
        np.testing.assert_allclose(found[valid], alone, atol=1e-6)
        assert (found[~valid] == 0).all()


def test_points_without_room_are_left_out_and_disturb_no_others():
    near = jnp.zeros((5, 2)), jnp.ones((5, 1))
    far = 100 + 10 * jnp.arange(20.0)[:, None] * jnp.ones((1, 2))
    features = jnp.concatenate([near[0], far])
    found = build_lattice(features, capacity=3)(jnp.ones((25, 1)))
    np.testing.assert_allclose(found[:5], build_lattice(near[0])(near[1]), rtol=1e-6)
    assert (found[5:] == 0).all()


@pytest.mark.slow
def test_batches_are_filtered_as_one_by_one():
    features = jnp.asarray(np.stack([cloud(60, 3, seed=s)[0] for s in (0, 1)]))
    values = jnp.asarray(np.stack([cloud(60, 3, seed=s)[1] for s in (0, 1)]))
    both = jax.vmap(lambda f, v: with_lattice(f, None, lambda g: g(v)))(
        features, values
    )
    for i in range(2):
        alone = build_lattice(features[i])(values[i])
        np.testing.assert_allclose(both[i], alone, rtol=1e-4, atol=1e-6)


def test_buckets_are_few_and_never_too_small():
    sizes = [bucket(n) for n in range(1, 1000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * n for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 20
