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
from dilax.ops import upsample_bilinear

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


def _logarithms(probabilities: jax.typing.ArrayLike) -> jax.Array:
    return jnp.log(jnp.maximum(probabilities, MIN_PROBABILITY))


def refinement(crf: CRF) -> Refine:
    """`f(params, probabilities (h, w, k), image (h, w, c))` → marginals, float32.

    Args:
        crf: see `Predictor`.
    """
    if not isinstance(crf, CRFRNN):
        return lambda _, odds, image: np.asarray(crf(odds, as_uint8(image)), np.float32)

    def refine(params: Params, odds: np.ndarray, image: np.ndarray) -> np.ndarray:
        inputs = _logarithms(odds)[None], as_uint8(image)[None]
        logits: Any = crf.apply({"params": params["crf"]}, *inputs)
        return np.asarray(jax.nn.softmax(logits[0]))

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
