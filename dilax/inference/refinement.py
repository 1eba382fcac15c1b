"""A CRF after the network, on whole images at full resolution (paper §5).

A dense CRF takes probabilities. A CRF-RNN takes their logarithms, which differ from
logits by a constant a pixel, and its softmax does not see that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax.crf import CRFRNN
from dilax.crf.dense_crf import MIN_PROBABILITY
from dilax.crf.image_kernels import image_kernels, pad_widths
from dilax.crf.kernels import Kernel
from dilax.crf.mean_field import Pairwise, mean_field
from dilax.ops import jit, upsample_bilinear

CRF = Callable[[np.ndarray, np.ndarray], Any] | CRFRNN
Params = dict[str, Any]
Refine = Callable[[Params, np.ndarray, np.ndarray], np.ndarray]


def log_probabilities(logits: jax.Array, stride: int) -> jax.Array:
    """The network's logits (b, h, w, k) → log-probabilities of the pixels.

    Args:
        logits: of cells that stand `stride` pixels apart.
        stride: above 1, probabilities are upsampled as the predictor does, top-left
            aligned.
    """
    probabilities = jax.nn.softmax(logits)
    if stride > 1:
        probabilities = upsample_bilinear(probabilities, stride)
    return _logarithms(probabilities)


def _logarithms(probabilities: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(probabilities, MIN_PROBABILITY))


def refinement(crf: CRF) -> Refine:
    """`f(params, probabilities (h, w, k), image (h, w, c))` → marginals, float32.

    Args:
        crf: see `Predictor`.
    """
    if isinstance(crf, CRFRNN):
        return _rnn_refinement(crf)
    return lambda _, odds, image: np.asarray(crf(odds, as_uint8(image)), np.float32)


def _rnn_refinement(crf: CRFRNN) -> Refine:
    """What `crf.apply` gives for testing, of images padded to few sizes."""
    sigmas = crf.spatial_sigma, crf.bilateral_sigma_xy, crf.bilateral_sigma_rgb

    @jit
    def run(params: Params, odds: jax.Array, kernels: tuple[Kernel, Kernel]):
        names = "spatial_weights", "bilateral_weights"
        energies = [params["compatibility"] @ params[name] for name in names]
        terms = [Pairwise(k, e) for k, e in zip(kernels, energies, strict=True)]
        flat = _logarithms(odds).reshape(-1, odds.shape[-1])
        logits = mean_field(flat, terms, crf.test_steps)
        return jax.nn.softmax(logits).reshape(odds.shape)

    def refine(params: Params, odds: np.ndarray, image: np.ndarray):
        kernels = image_kernels(as_uint8(image), sigmas, "after", crf.method)
        padded = np.pad(odds, [*pad_widths(odds.shape[:2]), (0, 0)])
        marginals = run(params["crf"], padded, (kernels.spatial, kernels.bilateral))
        return np.asarray(marginals)[: len(odds), : odds.shape[1]]

    return refine


def as_uint8(image: np.ndarray) -> np.ndarray:
    """A uint8 or uint16 image on the 0..255 scale of uint8.

    Example:
        >>> as_uint8(np.array([[[0, 257, 65535]]], np.uint16)).tolist()
        [[[0, 1, 255]]]
    """
    if image.dtype == np.uint8:
        return image
    return np.round(image / 257).astype(np.uint8)
