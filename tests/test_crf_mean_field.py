"""The mean field and its energies, and the layer that trains it (CRF-RNN)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from crf_scenes import draw_image, gaussian_sums

from dilax import CRFRNN, DenseCRF
from dilax.crf import kernels
from dilax.crf.filters import ExactFilter, normalize
from dilax.crf.mean_field import Pairwise, energies, energy, mean_field
from dilax.runtime import jit

pytestmark = pytest.mark.slow
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


# CRF-RNN.


@pytest.fixture(autouse=True)
def small_padding(monkeypatch):
    """Exact sums take the square of the padded pixels."""
    monkeypatch.setattr(kernels, "SIDE", 8)


SIZES = dict(spatial_sigma=1.5, bilateral_sigma_xy=4.0, bilateral_sigma_rgb=20.0)
NAMES = ["spatial_weights", "bilateral_weights", "compatibility"]


def _draw_batch(batch=2, height=4, width=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, height, width, classes))
    images = np.stack([draw_image(height, width, seed=s) for s in range(batch)])
    params = {name: rng.normal(size=(classes, classes)) for name in NAMES}
    return logits, images, params


def _by_loops(logits, image, params, crf, steps):
    """Zheng et al.'s steps as they are listed, in float64."""
    h, w, k = logits.shape
    y, x = np.divmod(np.arange(h * w), w)
    place = np.stack([x, y], 1).astype(float)
    colours = image.reshape(h * w, -1) / crf.bilateral_sigma_rgb
    wide = np.concatenate([place / crf.bilateral_sigma_xy, colours], 1)
    spatial, bilateral = (
        _matrix(features, "after") for features in (place / crf.spatial_sigma, wide)
    )
    current = unary = logits.reshape(-1, k)
    for _ in range(steps):
        powers = np.exp(current)
        q = powers / powers.sum(1, keepdims=True)
        weighted = spatial @ q @ params["spatial_weights"].T
        weighted = weighted + bilateral @ q @ params["bilateral_weights"].T
        current = unary - weighted @ params["compatibility"].T
    return current.reshape(logits.shape)


@pytest.mark.parametrize("train, steps", [(True, 2), (False, 4)])
def test_agrees_with_the_listed_steps(x64, train, steps):
    logits, images, params = _draw_batch()
    crf = CRFRNN(3, **SIZES, train_steps=2, test_steps=4, method="exact")
    out = crf.apply({"params": params}, logits, images, train=train)
    assert out.dtype == jnp.float64
    for got, one, image in zip(out, logits, images, strict=True):
        expected = _by_loops(one, image, params, crf, steps)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_first_weights_are_those_of_the_paper():
    logits, images, _ = _draw_batch(classes=4)
    crf = CRFRNN(4, method="exact")
    params = crf.init(jax.random.key(0), np.float32(logits), images)["params"]
    for name, scale in zip(NAMES, (3, 5, -1), strict=True):
        np.testing.assert_array_equal(params[name], scale * np.eye(4))
    fields = crf.spatial_sigma, crf.bilateral_sigma_xy, crf.bilateral_sigma_rgb
    assert (*fields, crf.train_steps, crf.test_steps) == (3.0, 160.0, 3.0, 5, 10)


def test_before_training_it_is_the_dense_crf_normalised_after():
    logits, images, _ = _draw_batch(1)
    logits = np.float32(logits)
    rnn = CRFRNN(3, **SIZES, test_steps=2, method="exact")
    params = rnn.init(jax.random.key(0), logits, images)
    weights = dict(spatial_weight=3.0, bilateral_weight=5.0, iterations=2)
    dense = DenseCRF(**SIZES, **weights, normalization="after", method="exact")
    marginals = dense(np.array(jax.nn.softmax(logits[0])), images[0])
    out = jax.nn.softmax(rnn.apply(params, logits, images))
    np.testing.assert_allclose(out[0], marginals, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_gradients_pass_finite_differences(x64, method):
    logits, images, params = _draw_batch()
    crf = CRFRNN(3, **SIZES, train_steps=3, method=method)
    labels = np.random.default_rng(1).integers(0, 3, logits.shape[:3])

    @jax.jit
    def loss(params, logits):
        out = crf.apply({"params": params}, logits, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

    points = jax.tree.map(jnp.asarray, (params, logits))
    slopes = jax.grad(loss, (0, 1))(*points)
    leaves, shape = jax.tree.flatten(points)
    for i, slope in enumerate(jax.tree.leaves(slopes)):
        direction = np.random.default_rng(i).normal(size=slope.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(leaves)
            moved[i] = leaves[i] + step * direction
            ends.append(loss(*jax.tree.unflatten(shape, moved)))
        expected = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(jnp.sum(slope * direction), expected, rtol=1e-5)
        assert abs(expected) > 1e-4


def test_no_gradient_reaches_the_image():
    logits, images, params = _draw_batch()
    crf = CRFRNN(3, **SIZES, method="exact")

    def total(images):
        return crf.apply({"params": params}, np.float32(logits), images).sum()

    assert not np.asarray(jax.grad(total)(np.float32(images))).any()


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_jit_prepared_images_and_types_of_images_change_nothing(method):
    logits, images, params = _draw_batch()
    logits, params = jax.tree.map(np.float32, (logits, params))
    crf = CRFRNN(3, **SIZES, test_steps=2, method=method)

    def apply(logits, images):
        return crf.apply({"params": params}, logits, images)

    expected = np.asarray(apply(logits, images))
    others = {
        "jit": jit(apply)(logits, images),
        "floats": jit(apply)(logits, np.float32(images)),
        "prepared": apply(logits, [crf.prepare(image) for image in images]),
        "vmap": jax.vmap(apply)(logits[:, None], images[:, None])[:, 0],
        "constant images": jit(lambda logits: apply(logits, images))(logits),
    }
    for name, other in others.items():
        np.testing.assert_allclose(other, expected, atol=1e-4, err_msg=name)


def test_logarithms_of_probabilities_do_as_logits():
    logits, images, params = _draw_batch(1)
    logits, params = jax.tree.map(np.float32, (logits, params))
    crf = CRFRNN(3, **SIZES, test_steps=2, method="exact")
    one = crf.apply({"params": params}, logits, images)
    other = crf.apply({"params": params}, jax.nn.log_softmax(logits), images)
    np.testing.assert_allclose(jax.nn.softmax(one), jax.nn.softmax(other), atol=1e-5)


def test_it_learns_which_labels_go_together():
    """Noise on two halves: training the weights alone lowers the loss."""
    image = draw_image(12, 16)[None]
    labels = (np.arange(16) >= 8).astype(int)[None, None].repeat(12, 1)
    noise = np.random.default_rng(0).normal(size=(1, 12, 16, 2)) * 2
    logits = jnp.asarray(np.eye(2)[labels] + noise, jnp.float32)
    crf = CRFRNN(2, **SIZES, method="exact")
    params = crf.init(jax.random.key(0), logits, image)["params"]
    params["compatibility"] = jnp.zeros((2, 2))

    @jit
    def descend(params):
        def loss(params):
            out = crf.apply({"params": params}, logits, image, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

        value, slopes = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, s: p - 0.1 * s, params, slopes)

    losses = []
    for _ in range(20):
        value, params = descend(params)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]


def test_memory_of_the_reverse_pass_grows_little_with_the_steps():
    logits, images, params = _draw_batch(1, 32, 32)
    logits = np.float32(logits)

    def needed(steps):
        crf = CRFRNN(3, **SIZES, train_steps=steps, method="exact")

        def loss(params, logits, images):
            return crf.apply({"params": params}, logits, images, train=True).sum()

        lowered = jit(jax.grad(loss, (0, 1))).lower(params, logits, images)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert needed(12) - needed(2) < 10 * 1.5 * logits.nbytes


@pytest.mark.parametrize(
    "logits, images, message",
    [
        ((2, 4, 5, 3), (2, 4, 6, 3), r"images of \(height, width\) \[\(4, 6\), \(4, 6"),
        ((2, 4, 5, 3), (1, 4, 5, 3), r"images of \(height, width\) \[\(4, 5\)\]"),
        ((2, 4, 5, 4), (2, 4, 5, 3), r"they are \(b, h, w, 3\)"),
    ],
)
def test_a_size_mismatch_is_refused(unchecked, logits, images, message):
    crf = CRFRNN(3, method="exact")
    with pytest.raises(ValueError, match=message):
        crf.init(jax.random.key(0), jnp.zeros(logits), jnp.zeros(images))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"spatial_sigma": 0.0}, "spatial_sigma=0.0: a bandwidth"),
        ({"test_steps": -1}, "test_steps=-1: iterations"),
        ({"method": "fast"}, "method='fast': must be one"),
    ],
)
def test_bad_fields_are_refused(unchecked, fields, message):
    logits, images, _ = _draw_batch()
    with pytest.raises(ValueError, match=message):
        CRFRNN(3, **fields).init(jax.random.key(0), logits, images)
