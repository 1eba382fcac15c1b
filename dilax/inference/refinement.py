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
from dilax.ops import jit, upsample_bilinear

CRF = Callable[[np.ndarray, np.ndarray], Any] | CRFRNN
Refine = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]

_LEAST = 1e-10  # below any probability that counts, so that logarithms are finite


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
    return jnp.log(jnp.maximum(probabilities, _LEAST))


def refinement(crf: CRF) -> Refine:
    """`f(params, probabilities (h, w, k), image (h, w, c))` → marginals, float32.

    Args:
        crf: see `Predictor`; a `CRFRNN` is compiled here, for every size that comes.
    """
    if not isinstance(crf, CRFRNN):
        return lambda _, odds, image: np.asarray(crf(odds, as_uint8(image)), np.float32)

    @jit
    def run(params: Any, odds: jax.Array, image: jax.Array):
        logits = jnp.log(jnp.maximum(odds, _LEAST))[None]
        refined: Any = crf.apply({"params": params}, logits, image[None])
        return jax.nn.softmax(refined[0])

    return lambda params, odds, image: np.asarray(
        run(params["crf"], odds, as_uint8(image))
    )


def as_uint8(image: np.ndarray) -> np.ndarray:
    """A uint8 or uint16 image on the 0..255 scale of uint8.

    Example:
        >>> as_uint8(np.array([[[0, 257, 65535]]], np.uint16)).tolist()
        [[[0, 1, 255]]]
    """
    if image.dtype == np.uint8:
        return image
    return np.round(image / 257).astype(np.uint8)
