"""The dense CRF beside pydensecrf, its authors' C++ code, and the exact sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_scenes import (
    DEEPLAB,
    REFERENCE,
    build_pydensecrf,
    draw_image,
    draw_probabilities,
    photographs,
    reference_marginals,
)

from dilax import DenseCRF
from dilax.crf.mean_field import Pairwise, energy

pytestmark = pytest.mark.slow


@pytest.fixture
def densecrf():
    reason = "compares with pydensecrf"
    return pytest.importorskip("pydensecrf.densecrf", reason=reason)


def _scene(classes=3):
    return draw_probabilities(24, 31, classes, cell=4), draw_image(24, 31)


@pytest.mark.parametrize(
    "settings, size",
    [
        pytest.param(REFERENCE, (500, 500), id="authors", marks=pytest.mark.full),
        pytest.param(DEEPLAB, (192, 256), id="deeplab"),
    ],
)
def test_by_the_lattice_photographs_come_out_as_from_pydensecrf(
    densecrf, real_data, settings, size
):
    for whole in photographs(real_data, 2):
        image = np.ascontiguousarray(whole[: size[0], : size[1]])
        probabilities = draw_probabilities(*image.shape[:2], 21, cell=32)
        expected = reference_marginals(densecrf, probabilities, image, settings)
        crf = DenseCRF(**settings, method="lattice")
        marginals = np.asarray(crf(probabilities, image))
        assert abs(marginals - expected).mean() < 1e-5
        assert (marginals.argmax(-1) == expected.argmax(-1)).mean() > 0.9995


@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
def test_normalisations_are_those_of_pydensecrf(densecrf, normalization):
    names = dict(none="NO_NORMALIZATION")
    name = names.get(normalization, f"NORMALIZE_{normalization.upper()}")
    weak = normalization == "none"  # whose messages count pixels
    weights = dict(spatial_weight=0.02, bilateral_weight=0.01) if weak else {}
    settings = REFERENCE | weights
    probabilities, image = _scene()
    expected = reference_marginals(
        densecrf, probabilities, image, settings, normalization=getattr(densecrf, name)
    )
    crf = DenseCRF(**settings, method="lattice", normalization=normalization)
    np.testing.assert_allclose(crf(probabilities, image), expected, atol=1e-4)
    assert abs(expected - probabilities).max() > 0.1


@pytest.mark.parametrize(
    "mu",
    [
        np.array([[-1.0, 0.5, 0.2], [0.5, -0.7, 0.1], [0.2, 0.1, -2.0]]),
        np.array([-1.0, -0.2, -3.0]),
    ],
    ids=["matrix", "diagonal"],
)
def test_compatibilities_are_energies_as_in_pydensecrf(densecrf, mu):
    probabilities, image = _scene()
    mu = mu.astype(np.float32)
    kernels = (3.0, 3 * mu), (80.0, 13.0, 10 * mu)
    reference = build_pydensecrf(densecrf, probabilities, image, *kernels)
    expected = np.array(reference.inference(5)).reshape(3, 24, 31).transpose(1, 2, 0)
    crf = DenseCRF(**REFERENCE, compatibility=mu, method="lattice")
    np.testing.assert_allclose(crf(probabilities, image), expected, atol=1e-4)


def test_the_energy_counts_pairs_once_where_pydensecrf_counts_twice(densecrf):
    probabilities, image = _scene()
    kernels = (3.0, 3.0), (80.0, 13.0, 10.0)
    reference = build_pydensecrf(densecrf, probabilities, image, *kernels)
    start, _, _ = reference.startInference()
    crf = DenseCRF(**REFERENCE, method="lattice")
    flat = jnp.asarray(probabilities.reshape(-1, 3))
    prepared = jax.jit(crf.prepare)(image)
    terms = [
        Pairwise(prepared.spatial, jnp.array(3.0)),
        Pairwise(prepared.bilateral, jnp.array(10.0)),
    ]
    parts = energy(flat, jnp.log(flat), terms)
    twice = sum(jnp.sum(flat * term(flat)) for term in terms)
    total = parts.unary + parts.negative_entropy + twice
    np.testing.assert_allclose(reference.klDivergence(start), total, rtol=1e-3)


def test_the_default_is_nearer_to_the_exact_sum_than_pydensecrf(densecrf, real_data):
    for whole in photographs(real_data, 2):
        image = np.ascontiguousarray(whole[100:148, 100:164])
        probabilities = draw_probabilities(48, 64, 5, cell=8)
        exact, default = (
            np.asarray(DenseCRF(**REFERENCE, method=m)(probabilities, image))
            for m in ("exact", "auto")
        )
        theirs = reference_marginals(densecrf, probabilities, image, REFERENCE)
        ours, other = (abs(x - exact).mean() for x in (default, theirs))
        assert ours < other
        assert other < 0.05
