"""A CRF after the network: what it is given, and what the predictor gives then."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_net import NET, SPEC, image_of, params_of, predictor_of

from dilax.crf import CRFRNN, DenseCRF
from dilax.inference import Predictor, predict_photos
from dilax.inference.predictor import as_uint8, log_probabilities

SIZES = [(40, 50), (300, 33), (1, 1)]


def _identity(probabilities, image):
    return probabilities


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["tiles", "blend"])
def test_a_crf_that_changes_nothing_changes_nothing(size, mode):
    image = image_of(size)
    plain, with_crf = predictor_of(mode=mode), predictor_of(mode=mode, crf=_identity)
    np.testing.assert_array_equal(with_crf(image), plain(image))
    np.testing.assert_array_equal(
        with_crf.probabilities(image), plain.probabilities(image)
    )
    for probabilities in (False, True):
        ours, theirs = (list(p.bands(image, probabilities)) for p in (with_crf, plain))
        assert [b.dtype for b in ours] == [b.dtype for b in theirs]
        assert [b.shape for b in ours] == [b.shape for b in theirs]
        np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(theirs))


def test_labels_stream_and_bands_are_the_crf_s():
    def swapped(probabilities, image):
        return probabilities[..., ::-1]

    images = [image_of(size) for size in SIZES]
    plain, predictor = predictor_of(), predictor_of(crf=swapped)
    for image, labels in zip(images, predictor.stream(images), strict=True):
        wanted = plain.probabilities(image)[..., ::-1]
        np.testing.assert_array_equal(labels, wanted.argmax(-1))
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(predictor.probabilities(image), wanted)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_crf_sees_whole_images_on_the_scale_of_8_bits(dtype):
    given = []

    def crf(probabilities, image):
        given.append((probabilities, image))
        return probabilities

    image = image_of((30, 41))
    half = dataclasses.replace(SPEC, scale=0.5)
    predictor_of(spec=half, crf=crf)(image * dtype(np.iinfo(dtype).max // 255))
    [(probabilities, seen)] = given
    assert probabilities.shape == (30, 41, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(seen, image)
    assert seen.dtype == np.uint8


def test_sixteen_bits_are_rounded():
    values = np.array([0, 128, 129, 65535], np.uint16).reshape(1, 1, 4)
    assert as_uint8(values).ravel().tolist() == [0, 0, 1, 255]


def test_a_dense_crf_is_applied_at_full_resolution():
    crf = DenseCRF(1.0, 1.0, 5.0, 20.0, 1.0, 2, method="exact")
    image, predictor = image_of((20, 30)), predictor_of()
    wanted = crf(predictor.probabilities(image), image)
    got = predictor_of(crf=crf).probabilities(image)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def _rnn(weight):
    rnn = CRFRNN(3, 1.0, 5.0, 20.0, 2, 3, method="exact")
    inputs = jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3))
    params = rnn.init(jax.random.key(0), *inputs)["params"]
    return rnn, jax.tree.map(lambda x: x * weight, params)


def test_a_crf_rnn_without_pairwise_terms_gives_the_network_s_prediction():
    rnn, params = _rnn(0.0)
    predictor = Predictor(NET, {**params_of(NET), "crf": params}, SPEC, crf=rnn)
    image = image_of((30, 41))
    np.testing.assert_allclose(
        predictor.probabilities(image), predictor_of().probabilities(image), atol=1e-6
    )


def test_a_crf_rnn_takes_its_parameters_from_the_predictor_s():
    rnn, params = _rnn(1.0)
    network, image = params_of(NET), image_of((30, 41))
    predictor = Predictor(NET, {**network, "crf": params}, SPEC, crf=rnn)
    odds = predictor_of().probabilities(image)
    wanted = rnn.apply({"params": params}, np.log(odds)[None], image[None])
    np.testing.assert_allclose(
        predictor.probabilities(image), jax.nn.softmax(wanted[0]), atol=1e-5
    )
    none = predictor.with_params({**network, "crf": _rnn(0.0)[1]})
    np.testing.assert_allclose(none.probabilities(image), odds, atol=1e-6)


def test_photographs_are_written_with_the_crf(tmp_path):
    image = image_of((30, 41))
    Image.fromarray(image).save(tmp_path / "photo.png")
    predictor = predictor_of(crf=lambda odds, _: odds[..., ::-1])
    predict_photos(predictor, tmp_path, tmp_path / "out", outputs=["labels"])
    with Image.open(tmp_path / "out" / "photo.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), predictor(image))


def test_cells_become_pixels_as_in_the_predictor():
    logits = jnp.log(jnp.array([0.25, 0.75]))
    cells = jnp.stack([logits, logits[::-1]])[None, None]  # (1, 1, 2, 2)
    odds = jnp.exp(log_probabilities(cells, 2))
    np.testing.assert_allclose(odds[0, 0, :, 0], [0.25, 0.5, 0.75, 0.75], rtol=1e-5)
