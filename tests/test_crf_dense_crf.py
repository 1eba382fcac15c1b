"""The dense CRF: its definition by loops, jit and vmap, bad input."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_scenes import draw_image, draw_probabilities, gaussian_sums
from PIL import Image
from telling import largest_channel

from dilax import DenseCRF
from dilax.crf import kernels

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_padding(monkeypatch):
    """Exact sums take the square of the padded pixels."""
    monkeypatch.setattr(kernels, "SIDE", 8)


SMALL = dict(
    spatial_sigma=1.5,
    spatial_weight=3.0,
    bilateral_sigma_xy=4.0,
    bilateral_sigma_rgb=20.0,
    bilateral_weight=2.0,
    iterations=3,
    method="exact",
)


def _draw(height=5, width=7, classes=3, channels=3):
    probabilities = draw_probabilities(height, width, classes)
    return probabilities, draw_image(height, width, channels)


def _by_loops(probabilities, image, crf, mu):
    """Krähenbühl & Koltun's algorithm 1 in float64, symmetric normalisation."""
    h, w, k = probabilities.shape
    y, x = np.divmod(np.arange(h * w), w)
    place = np.stack([x, y], 1).astype(float)
    colours = image.reshape(h * w, -1) / crf.bilateral_sigma_rgb
    wide = np.concatenate([place / crf.bilateral_sigma_xy, colours], 1)
    total = 0
    for features, weight in (
        (place / crf.spatial_sigma, crf.spatial_weight),
        (wide, crf.bilateral_weight),
    ):
        matrix = gaussian_sums(features, np.eye(h * w))
        scale = matrix.sum(1) ** -0.5
        total = total + weight * scale[:, None] * matrix * scale
    logits = np.log(np.maximum(probabilities.reshape(-1, k).astype(float), 1e-8))
    q = np.exp(logits)
    for _ in range(crf.iterations):
        powers = np.exp(logits - total @ q @ mu.T)
        q = powers / powers.sum(1, keepdims=True)
    return q.reshape(h, w, k)


POTTS = -np.eye(3)
OTHER = np.array([[-1.0, 0.5, 0.2], [0.3, -0.7, 0.1], [0.0, 0.4, -0.2]])
DIAGONAL = [-1.0, -0.5, -2.0]


@pytest.mark.parametrize(
    "channels, given, mu",
    [
        (1, None, POTTS),
        (5, None, POTTS),
        (3, OTHER, OTHER),
        (3, DIAGONAL, np.diag(DIAGONAL)),
    ],
    ids=["grey", "5 channels", "matrix", "diagonal"],
)
def test_agrees_with_its_definition(channels, given, mu):
    probabilities, image = _draw(channels=channels)
    crf = DenseCRF(**SMALL, compatibility=given)
    expected = _by_loops(probabilities, image, crf, mu)
    marginals = crf(probabilities, image)
    assert marginals.dtype == jnp.float32
    np.testing.assert_allclose(marginals, expected, atol=1e-5)
    assert abs(expected - probabilities).max() > 0.2


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_padding_jit_and_batches_change_nothing(method):
    probabilities, image = _draw()
    crf = DenseCRF(**SMALL | {"method": method, "iterations": 2})
    prepared = crf.prepare(image)  # padded
    marginals = np.asarray(crf(probabilities, prepared))
    others = {
        "jit": jax.jit(crf)(probabilities, image),  # not padded
        "traced beside a prepared image": jax.jit(crf)(probabilities, prepared),
        "batch of prepared": crf(probabilities[None], [prepared])[0],
        "vmap": jax.vmap(crf)(probabilities[None], image[None])[0],
    }
    if method == "exact":  # which compiles sooner
        others |= {
            "around a constant image": jax.jit(lambda p: crf(p, image))(probabilities),
            "batch": crf(probabilities[None], image[None])[0],
            "jitted batch": jax.jit(crf)(probabilities[None], image[None])[0],
            "jax arrays": crf(jnp.asarray(probabilities), jnp.asarray(image)),
        }
    for name, other in others.items():
        np.testing.assert_allclose(other, marginals, atol=2e-5, err_msg=name)


def test_a_batch_treats_every_image_alone():
    pairs = [_draw(), (draw_probabilities(5, 7, 3, seed=1), draw_image(5, 7, seed=1))]
    crf = jax.jit(DenseCRF(**SMALL))
    batch = crf(*(np.stack(x) for x in zip(*pairs, strict=True)))
    for out, pair in zip(batch, pairs, strict=True):
        np.testing.assert_allclose(out, crf(*pair), atol=1e-6)


def test_a_search_over_the_parameters_compiles_once(caplog):
    DenseCRF(**SMALL)(*_draw())
    with jax.log_compiles():
        for scale in (0.9, 1.1):
            names = "bilateral_sigma_xy", "bilateral_sigma_rgb", "bilateral_weight"
            other = SMALL | {name: SMALL[name] * scale for name in names}
            DenseCRF(**other)(*_draw())
        marginals = DenseCRF(**SMALL)(*_draw(6, 8))  # of another size
        assert "Compiling jit(_marginals)" not in caplog.text
        jax.jit(lambda x: x + 2)(marginals)
    assert "Compiling jit(<lambda>)" in caplog.text


def test_prepared_images_serve_other_weights():
    probabilities, image = _draw()
    kernels = DenseCRF(**SMALL | {"method": "auto"}).prepare(image)
    heavy = DenseCRF(**SMALL | {"bilateral_weight": 5.0, "method": "auto"})
    np.testing.assert_array_equal(
        heavy(probabilities, kernels), heavy(probabilities, image)
    )


def test_gradients_pass_finite_differences():
    probabilities, image = _draw(3, 4)
    with jax.enable_x64(True):
        crf = DenseCRF(**SMALL)

        def loss(probabilities, image):
            return jnp.sum(crf(probabilities, image)[..., 0] ** 2)

        points = probabilities.astype(float), image.astype(float)
        slopes = jax.grad(loss, (0, 1))(*map(jnp.asarray, points))
        rng = np.random.default_rng(0)
        for i, step in ((0, 1e-6), (1, 1e-4)):
            direction = rng.normal(size=points[i].shape)
            ends = []
            for sign in (1, -1):
                moved = list(points)
                moved[i] = points[i] + sign * step * direction
                ends.append(jax.jit(loss)(*moved))
            slope = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(jnp.sum(slopes[i] * direction), slope, rtol=1e-5)
            assert abs(slope) > 1e-4


def test_trace_starts_at_the_probabilities_and_falls():
    probabilities, image = _draw(12, 9)
    crf = DenseCRF(**SMALL | {"iterations": 6})
    parts = crf.trace(probabilities, image)
    assert parts.kl.shape == (7,)
    p = np.float64(probabilities)
    np.testing.assert_allclose(parts.unary[0], -np.sum(p * np.log(p)), rtol=1e-5)
    np.testing.assert_allclose(parts.negative_entropy[0], -parts.unary[0], rtol=1e-5)
    assert (np.diff(parts.kl) < 1e-3).all()
    padded = jax.jit(crf.trace)(probabilities, image)  # without any padding
    np.testing.assert_allclose(parts.kl, padded.kl, rtol=1e-5)


def test_no_iterations_return_the_probabilities():
    probabilities, image = _draw()
    crf = DenseCRF(iterations=0, method="exact")
    np.testing.assert_allclose(crf(probabilities, image), probabilities, atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_one_pixel_keeps_its_probabilities_and_its_own_message(method):
    probabilities = np.array([[[0.3, 0.7]]], np.float32)
    image = np.zeros((1, 1, 3), np.uint8)
    crf = DenseCRF(1, 0.5, 1, 1, 0.25, iterations=1, method=method)
    powers = np.array([0.3, 0.7]) * np.exp(0.75 * np.array([0.3, 0.7]))
    expected = powers / powers.sum()
    np.testing.assert_allclose(crf(probabilities, image)[0, 0], expected, atol=1e-6)


def test_the_defaults_keep_thin_objects():
    pole = np.zeros((64, 64, 1), bool)
    pole[8:56, 30:33] = True  # a little darker than what is behind it
    noise = np.random.default_rng(0).normal(0, 8, (64, 64, 3))
    image = (150 - 15 * pole + noise).astype(np.uint8)
    probabilities = np.where(pole, (0.2, 0.8), (0.9, 0.1)).astype(np.float32)
    labels = np.asarray(DenseCRF()(probabilities, image)).argmax(-1)
    assert (labels == 1)[pole[..., 0]].mean() > 0.9


def test_certain_probabilities_count_as_almost_certain():
    labels = np.arange(35).reshape(5, 7) % 3
    certain, image = np.eye(3, dtype=np.float32)[labels], draw_image(5, 7)
    crf = DenseCRF(**SMALL)
    np.testing.assert_array_equal(
        crf(certain, image), crf(np.maximum(certain, np.float32(1e-8)), image)
    )
    assert np.isfinite(crf(certain, image)).all()


def _changed(at, value):
    probabilities, image = _draw()
    probabilities[at] = value
    return probabilities, image


@pytest.mark.parametrize(
    "probabilities, image, message",
    [
        (*_changed((2, 4), 0.5), r"pixel \(2, 4\) .* add up to 1.5, not to 1"),
        (*_changed((2, 4), [0.5, 0.6, -0.1]), r"-0.1 at pixel \(2, 4\) .* negative"),
        (*_changed((4, 6, 0), np.nan), r"pixel \(4, 6\) .* add up to nan"),
        (*_changed((4, 6, 0), np.inf), r"pixel \(4, 6\) .* add up to inf"),
        (_draw()[0] * np.float32(1.0011), _draw()[1], r"add up to 1\.0011"),
        (_draw(6, 7)[0], _draw()[1], "6×7 pixels and an image of 5×7"),
        (_draw()[0].astype(int), _draw()[1], "type int64 are not floats"),
        (_draw()[0][0], _draw()[1], r"shape \(7, 3\) are not \(h, w, k\)"),
        (_draw()[0], _draw()[1] / 255, "type float64 is not .* uint8"),
        (_draw()[0], _draw()[1].astype(np.uint16), "type uint16 is not .* uint8"),
        (_draw()[0], _draw()[1][..., 0], r"image of shape \(5, 7\)"),
        (_draw()[0][None], np.stack([_draw()[1]] * 2), "1 maps .* and 2 images"),
        (_draw()[0][None], _draw()[1], r"\(1, 5, 7, 3\) are a batch"),
        (_draw()[0].transpose(2, 0, 1), _draw()[1], r"\(k, h, w\).*transpose\(1, 2, 0"),
        (_draw()[0].transpose(1, 0, 2), _draw()[1], r"\(w, h, k\).*transpose\(1, 0, 2"),
        (_draw()[0].transpose(2, 1, 0), _draw()[1], r"\(k, w, h\).*transpose\(2, 1, 0"),
        (_draw()[0].reshape(35, 3), _draw()[1], r"\(h·w, k\): .*\.reshape\(5, 7, -1"),
        (_draw()[0].reshape(35, 3).T, _draw()[1], r"\(k, h·w\): .*\.T\.reshape"),
        (_draw()[0], _draw()[1].transpose(2, 0, 1), r"image is \(h, w, c\).*\(c, h, w"),
        ("no array", _draw()[1], "probabilities is not an array"),
        ([[1.0], [0.5, 0.5]], _draw()[1], "probabilities .* not an array"),
        (np.zeros((0, 7, 3), np.float32), _draw()[1][:0], r"image of shape \(0, 7, 3"),
    ],
)
def test_bad_input_is_refused_with_the_reason(unchecked, probabilities, image, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**SMALL)(probabilities, image)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_probabilities_may_be_rounded(dtype):
    probabilities, image = _draw()
    rounded = DenseCRF(**SMALL)(jnp.asarray(probabilities, dtype), image)
    expected = DenseCRF(**SMALL)(probabilities * np.float32(1.0009), image)
    np.testing.assert_allclose(rounded, expected, atol=0.01)


def test_lists_and_tensors_are_arrays(unchecked):
    torch = pytest.importorskip("torch")
    probabilities, image = _draw()
    expected = DenseCRF(**SMALL)(probabilities, image)
    lists = probabilities.tolist(), image.tolist()
    for p, i in (lists, (torch.tensor(probabilities), torch.tensor(image))):
        np.testing.assert_allclose(DenseCRF(**SMALL)(p, i), expected, atol=1e-6)
    tensor = torch.tensor(probabilities, requires_grad=True)
    with pytest.raises(ValueError, match=r"probabilities of type Tensor .*detach"):
        DenseCRF(**SMALL)(tensor, image)


def test_pil_images_are_read_as_the_predictor_reads_them():
    """Upright, and blended with white where they are transparent."""
    stored = np.dstack([draw_image(5, 7), np.full((5, 7), 255, np.uint8)])
    stored[:2, :, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    image = Image.open(file)
    predictor = largest_channel()
    probabilities = predictor.probabilities(image)
    shown = stored[..., :3].copy()
    shown[:2] = 255
    shown = np.rot90(shown, -1)
    np.testing.assert_array_equal(probabilities, predictor.probabilities(shown))
    crf = DenseCRF(**SMALL)
    expected = crf(probabilities, np.ascontiguousarray(shown))
    np.testing.assert_array_equal(crf(probabilities, image), expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"spatial_sigma": 0}, "spatial_sigma=0: a bandwidth is finite and above 0"),
        ({"bilateral_sigma_xy": -1.0}, "bilateral_sigma_xy=-1.0: a bandwidth"),
        ({"bilateral_sigma_rgb": np.inf}, "bilateral_sigma_rgb=inf: a bandwidth"),
        ({"bilateral_weight": np.nan}, "bilateral_weight=nan: a weight"),
        ({"spatial_weight": "3px"}, "spatial_weight='3px': a weight"),
        ({"iterations": -1}, "iterations=-1: iterations are"),
        ({"iterations": 2.5}, "iterations=2.5: iterations are"),
        ({"compatibility": np.zeros((2, 3))}, r"compatibility of shape \(2, 3\)"),
        ({"compatibility": [[np.nan]]}, r"compatibility of shape \(1, 1\)"),
        ({"normalization": "both"}, "normalization='both': must be one"),
        ({"method": "fast"}, "method='fast': must be one"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**arguments)


def test_a_compatibility_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="3 classes and a compatibility of 2"):
        DenseCRF(**SMALL, compatibility=np.eye(2))(*_draw())


def test_equal_ones_are_equal_and_hash():
    one, other = (DenseCRF(compatibility=-np.eye(2)) for _ in range(2))
    assert one == other != DenseCRF()
    assert hash(one) == hash(other)
