import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.runtime import jit
from dilax.training import LossConfig
from dilax.training.losses import loss_sum

WEIGHTS = np.array([0.5, 1.0, 2.0, 0.1], np.float32)


def test_ignored_pixels_have_no_gradient_and_others_softmax_minus_label():
    labels = jnp.array([[[1, 255]]], jnp.uint8)
    logits = jnp.zeros((1, 1, 2, 4)).at[..., 2].set(3.0)
    total = lambda z: loss_sum(LossConfig(), z, labels, 255).total  # noqa: E731
    gradient = jax.grad(total)(logits)
    wanted = jax.nn.softmax(logits[0, 0, 0]) - jnp.array([0, 1, 0, 0])
    np.testing.assert_allclose(gradient[0, 0, 0], wanted, atol=1e-6)
    np.testing.assert_array_equal(gradient[0, 0, 1], 0)


# Every loss against its definition, pixel by pixel, in NumPy.


def _images(labels, logits):
    """(probabilities (n, k), labels (n,)) of the valid pixels of each image."""
    for y, z in zip(np.asarray(labels), np.asarray(logits, np.float64), strict=True):
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        yield p[y != 255], y[y != 255]


def _cross_entropy(p, y, w):
    return -(w[y] * np.log(p[range(len(y)), y])).sum(), len(y)


def _focal(p, y, w):
    p = p[range(len(y)), y]
    return (-w[y] * (1 - p) ** 1.5 * np.log(p)).sum(), len(y)


def _ohem(p, y, w):
    p = p[range(len(y)), y]
    fewest = np.sort(p)[: int(np.ceil(0.3 * len(y)))]
    hard = (p < 0.2) | np.isin(p, fewest)
    return (-w[y] * np.log(p))[hard].sum(), hard.sum()


def _jaccard_loss(truth, wrong):
    """Of a guess that is the truth but for some pixels."""
    guess = truth ^ wrong
    return 1 - (truth & guess).sum() / (truth | guess).sum()


def _lovasz(p, y, w):
    """Algorithm 1 taken literally: the set function at each prefix of the order."""
    total, shares = 0.0, 0.0
    for c in set(y):
        truth = y == c
        errors = np.abs(truth - p[:, c])
        wrong, before, loss = np.zeros_like(truth), 0.0, 0.0
        for i in np.argsort(-errors, kind="stable"):
            wrong[i] = True
            now = _jaccard_loss(truth, wrong)
            loss += errors[i] * (now - before)
            before = now
        total, shares = total + w[c] * loss, shares + w[c]
    return (total / shares, 1) if shares else (0.0, 0)


def _dice(p, y, w):
    dice = {
        c: 2 * p[y == c, c].sum() / (p[:, c].sum() + (y == c).sum()) for c in set(y)
    }
    if not dice:
        return 0.0, 0
    return np.average([1 - d for d in dice.values()], weights=w[[*dice]]), 1


FORMS = {
    "cross_entropy": (_cross_entropy, {}),
    "focal": (_focal, {"gamma": 1.5}),
    "ohem": (_ohem, {"threshold": 0.2, "min_kept": 0.3}),
    "lovasz": (_lovasz, {}),
    "dice": (_dice, {}),
}
each_loss = pytest.mark.parametrize("name", FORMS)


def _example(seed=0):
    """Three images: of all classes, of two, and of none."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, 5, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (3, 5, 6)).astype(np.uint8)
    labels[0, :2] = 255
    labels[1] = np.where(labels[1] > 1, 1, labels[1])
    labels[2] = 255
    return jnp.asarray(logits), jnp.asarray(labels)


@each_loss
@pytest.mark.parametrize("weights", [None, jnp.asarray(WEIGHTS)])
def test_a_loss_is_that_of_its_definition(name, weights):
    form, options = FORMS[name]
    logits, labels = _example()
    w = np.ones(4) if weights is None else WEIGHTS
    pairs = [form(p, y, w) for p, y in _images(labels, logits)]
    config = LossConfig(name, **options)
    got = jit(lambda z, y: loss_sum(config, z, y, 255, weights))(logits, labels)
    np.testing.assert_allclose(got.total, sum(p[0] for p in pairs), rtol=2e-5)
    assert got.number == sum(p[1] for p in pairs)


@each_loss
def test_a_loss_and_its_gradient_are_the_sums_of_those_of_its_parts(name):
    logits, labels = _example()
    loss = jit(jax.value_and_grad(_total(name), has_aux=True))
    (whole, count), gradient = loss(logits, labels)
    parts = [loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(whole, sum(p[0][0] for p in parts), rtol=1e-6)
    assert count == sum(p[0][1] for p in parts)
    joined = np.concatenate([p[1] for p in parts])
    np.testing.assert_allclose(gradient, joined, atol=1e-6)


def _total(name):
    return lambda z, y: loss_sum(LossConfig(name), z, y, 255, jnp.asarray(WEIGHTS))


@each_loss
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
def test_gradients_are_finite_where_classes_are_absent_and_pixels_certain(name, scale):
    logits, labels = _example()
    (total, count), gradient = jax.value_and_grad(_total(name), has_aux=True)(
        scale * logits, labels
    )
    assert np.isfinite(total) and np.isfinite(gradient).all() and count > 0
    np.testing.assert_array_equal(gradient[labels == 255], 0)
    assert np.abs(gradient).max() > 0 or scale == 200.0


@each_loss
def test_all_ignored_is_no_loss_no_count_and_no_gradient(name):
    labels = jnp.full((1, 2, 2), 255, jnp.uint8)
    given = jnp.ones((1, 2, 2, 4)), labels
    (total, count), gradient = jax.value_and_grad(_total(name), has_aux=True)(*given)
    assert total == count == 0 and not gradient.any()


@each_loss
def test_a_gradient_is_the_slope_of_the_loss(name):
    logits, labels = _example(3)
    rng = np.random.default_rng(1)
    way = rng.normal(size=logits.shape).astype(np.float32)

    def total(t):
        return _total(name)(logits + t * way, labels)[0]

    slope = (float(total(2e-3)) - float(total(-2e-3))) / 4e-3
    assert float(jax.grad(total)(0.0)) == pytest.approx(slope, rel=1e-2, abs=2e-3)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, labels = _example()
    focal = loss_sum(LossConfig("focal", gamma=0.0), logits, labels, 255)
    plain = loss_sum(LossConfig(), logits, labels, 255)
    np.testing.assert_allclose(focal, plain, rtol=1e-6)


def test_hard_pixels_are_all_where_all_count():
    logits, labels = _example()
    every = loss_sum(
        LossConfig("ohem", threshold=0.0, min_kept=1.0), logits, labels, 255
    )
    np.testing.assert_allclose(
        every, loss_sum(LossConfig(), logits, labels, 255), rtol=1e-6
    )
    none = loss_sum(
        LossConfig("ohem", threshold=0.0, min_kept=0.0), logits, labels, 255
    )
    assert none.number == 0


@pytest.mark.parametrize("name", ["lovasz", "dice"])
def test_region_losses_run_from_none_to_one(name):
    labels = jnp.array([[[0, 1, 1, 2]]])
    right = 50 * jax.nn.one_hot(labels, 3)
    wrong = jnp.roll(right, 1, -1)
    loss = LossConfig(name)
    assert float(loss_sum(loss, right, labels, 255).total) == pytest.approx(0, abs=1e-6)
    assert float(loss_sum(loss, wrong, labels, 255).total) == pytest.approx(1)


def test_a_loss_of_another_name_is_refused(unchecked):
    logits, labels = _example()
    with pytest.raises(ValueError, match=r"loss.name='hinge': must be cross_entropy"):
        loss_sum(LossConfig("hinge"), logits, labels, 255)


def test_sum_over_millions_of_pixels_keeps_float_accuracy():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (4, 700, 700, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (4, 700, 700)).astype(np.uint8)
    z = logits.astype(np.float64)
    gap = np.where(labels == 0, z[..., 1] - z[..., 0], z[..., 0] - z[..., 1])
    exact = np.logaddexp(0, gap).sum()
    got = jit(lambda z, y: loss_sum(LossConfig(), z, y, 255))(logits, labels)
    assert abs(float(got.total) / exact - 1) < 1e-6
