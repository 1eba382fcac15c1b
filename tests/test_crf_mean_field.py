"""The mean field and its energies: loops over pixels, all labellings, pydensecrf."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_scenes import gaussian_sums

from dilax.crf.filters import ExactFilter
from dilax.crf.kernels import normalize
from dilax.crf.mean_field import Pairwise, energies, energy, mean_field

SCALES = {
    "none": lambda n: (1, 1),
    "before": lambda n: (1 / n, 1),
    "after": lambda n: (1, 1 / n),
    "symmetric": lambda n: (n**-0.5, n**-0.5),
}


def _draw(n=6, k=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), rng.normal(size=(n, k)) * 2


def _kernel(features, normalization):
    features = jnp.asarray(features)
    return normalize(ExactFilter(features), normalization, len(features))


def _matrix(features, normalization):
    """The normalised kernel as a matrix, by loops."""
    plain = gaussian_sums(features, np.eye(len(features)))
    before, after = SCALES[normalization](plain.sum(1))
    return np.reshape(after, (-1, 1)) * plain * np.reshape(before, (1, -1))


def _iterate(logits, matrix, mu, iterations):
    """Algorithm 1 as it is printed, in float64."""
    q = np.asarray(jax.nn.softmax(logits))
    for _ in range(iterations):
        powers = np.exp(logits - matrix @ q @ mu.T)
        q = powers / powers.sum(1, keepdims=True)
    return q


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("normalization", SCALES)
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_agrees_with_the_printed_algorithm(x64, normalization, iterations):
    features, logits = _draw()
    mu = np.array([[-1.0, 0.5, 0.2], [0.3, -0.7, 0.1], [0.0, 0.4, -0.2]])
    terms = [Pairwise(_kernel(features, normalization), jnp.asarray(mu))]
    out = jax.nn.softmax(mean_field(jnp.asarray(logits), terms, iterations))
    matrix = _matrix(features, normalization)
    expected = _iterate(logits, matrix, mu, iterations)
    np.testing.assert_allclose(out, expected, atol=1e-10)


@pytest.mark.parametrize(
    "short, mu",
    [
        (2.0, -2.0 * np.eye(3)),
        (2.0, 2.0 - 2.0 * np.eye(3)),
        ([-1.0, 0.5, -3.0], np.diag([-1.0, 0.5, -3.0])),
    ],
)
def test_numbers_and_vectors_stand_for_matrices(x64, short, mu):
    features, logits = _draw()
    runs = [
        mean_field(
            jnp.asarray(logits),
            [Pairwise(_kernel(features, "symmetric"), jnp.asarray(compatibility))],
            3,
        )
        for compatibility in (short, mu)
    ]
    short, full = (np.asarray(jax.nn.softmax(run)) for run in runs)
    np.testing.assert_allclose(short, full, atol=1e-10)


def test_terms_add_up(x64):
    features, logits = _draw()
    kernel = _kernel(features, "after")
    once, twice, both = (
        mean_field(jnp.asarray(logits), [Pairwise(kernel, w) for w in weights], 3)
        for weights in ([jnp.array(1.0)], [jnp.array(2.0)], [jnp.array(1.0)] * 2)
    )
    np.testing.assert_allclose(twice, both, atol=1e-12)
    assert abs(once - both).max() > 0.1


def _log_z_and_energies(logits, pairs, mu):
    """log Z and E(x) of all labellings, by enumeration."""
    n, k = logits.shape
    labellings = list(itertools.product(range(k), repeat=n))
    costs = []
    for x in labellings:
        cost = -sum(logits[i, x[i]] for i in range(n))
        for i, j in itertools.combinations(range(n), 2):
            cost += pairs[i, j] * mu[x[i], x[j]]
        costs.append(cost)
    return np.log(np.sum(np.exp(-np.array(costs)))), labellings, np.array(costs)


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_the_energy_is_the_divergence_from_the_enumerated_distribution(
    x64, normalization
):
    features, logits = _draw(n=4, k=2)  # 2×2 pixels, two labels
    mu = np.array([[-1.0, 0.3], [0.3, -0.5]])
    kernel = _kernel(features, normalization)
    pairs = _matrix(features, normalization)
    log_z, labellings, costs = _log_z_and_energies(logits, pairs, mu)
    q = np.asarray(jax.nn.softmax(_draw(4, 2, seed=1)[1]))
    chances = np.array([np.prod(q[np.arange(4), list(x)]) for x in labellings])
    divergence = np.sum(chances * (np.log(chances) + costs + log_z))
    terms = [Pairwise(kernel, jnp.asarray(mu))]
    parts = energy(jnp.asarray(q), jnp.asarray(logits), terms)
    np.testing.assert_allclose(parts.kl + log_z, divergence, rtol=1e-10)
    assert divergence > 0


def test_energies_fall_and_are_those_of_each_iteration(x64):
    features, logits = _draw(20)
    terms = [Pairwise(_kernel(features, "symmetric"), jnp.array(0.5))]
    logits = jnp.asarray(logits)
    parts = energies(logits, terms, 3)
    assert parts.kl.shape == (4,)
    assert parts.kl[3] < parts.kl[0]
    for i, value in enumerate(parts.kl):
        q = jax.nn.softmax(mean_field(logits, terms, i))
        np.testing.assert_allclose(value, energy(q, logits, terms).kl, rtol=1e-10)


def test_masked_pixels_have_no_energy(x64):
    features, logits = _draw(8)
    valid = jnp.arange(8) < 5
    inner = [Pairwise(_kernel(features[:5], "symmetric"), jnp.array(1.0))]
    outer = ExactFilter(jnp.asarray(features), valid)
    outer = normalize(outer, "symmetric", len(features))
    alone = energies(jnp.asarray(logits[:5]), inner, 2).kl
    padded = energies(
        jnp.asarray(logits), [Pairwise(outer, jnp.array(1.0))], 2, valid
    ).kl
    np.testing.assert_allclose(padded, alone, rtol=1e-10)


def test_certain_marginals_have_no_entropy_and_no_nan():
    features, _ = _draw()
    q = jnp.eye(3)[jnp.array([0, 1, 2, 0, 1, 2])]
    terms = [Pairwise(_kernel(features, "symmetric"), jnp.array(1.0))]
    assert energy(q, jnp.zeros((6, 3)), terms).negative_entropy == 0
