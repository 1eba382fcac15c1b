"""The permutohedral lattice's geometry."""

import jax.numpy as jnp
import numpy as np
import pytest

from dilax.crf.lattice import fingerprints, neighbour_steps, simplices


@pytest.fixture(params=[1, 2, 3, 5])
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


def test_neighbours_differ_by_constants(places):
    d1 = len(places.cells)
    words = np.asarray(fingerprints(places))
    points = coordinates(places)
    pairs = zip(_rows(points), words.reshape(2, -1).T, strict=True)
    known = {tuple(p): tuple(w) for p, w in pairs}
    met = 0
    for axis, step in enumerate(neighbour_steps(d1 - 1)):
        direction = np.ones(d1, int)
        direction[axis] -= d1
        for point, word in known.items():
            other = known.get(tuple(point + direction))
            if other:
                met += 1
                expected = [
                    (int(w) + s) % 2**32 for w, s in zip(word, step, strict=True)
                ]
                assert [int(w) for w in other] == expected
    assert met > 20


def _rows(points):
    return points.transpose(0, 2, 1).reshape(-1, points.shape[1])
