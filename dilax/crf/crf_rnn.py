"""CRF-RNN: the mean field as a layer that is trained (Zheng et al. 2015, §4).

This is the third architecture of §5 of the paper. It starts as a dense CRF.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from dilax.crf.checks import check_iterations, check_number
from dilax.crf.dense_crf import SIGMAS
from dilax.crf.filters import Method
from dilax.crf.kernels import (
    ImageKernels,
    KernelSettings,
    compiled,
    image_kernels,
    is_traced,
    pad_to_kernels,
    with_kernels,
)
from dilax.crf.mean_field import Pairwise, mean_field

_INITIAL = {"spatial_weights": 3.0, "bilateral_weights": 5.0, "compatibility": -1.0}


class CRFRNN(nn.Module):
    """Unrolled mean field with class-wise kernel weights and a trained compatibility.

    Each step: softmax; both Gaussian filters, each divided by its filter of ones;
    class-wise weights W_s and W_b; compatibility μ; the logits minus that. So
    logits ← U − μ (W_s m_s + W_b m_b), with Potts (μ = −I) and weights 3 and 5 at
    first.

    Args of `__call__`: logits (b, h, w, k), unnormalized or logarithms of
    probabilities; image (b, h, w, c), colours 0..255 as integers or floats; `train`
    takes `train_steps`. Returns logits of the marginals (b, h, w, k), float32, or
    float64 for float64. An image's kernels are built once for all steps. No gradient
    reaches the image. Concrete images, outside of `jax.jit`, are taken one by one, and
    by the lattice in less memory and time than traced ones, whose lattice has room for
    the worst case.

    Attributes:
        num_classes: k.
        spatial_sigma: bandwidth of the spatial kernel in pixels (θ_γ).
        bilateral_sigma_xy: bandwidth of the bilateral kernel in pixels (θ_α).
        bilateral_sigma_rgb: its bandwidth in colours of 0..255 (θ_β).
        train_steps: steps in training.
        test_steps: steps in testing.
        method: of filtering, as of `DenseCRF`.

    Raises:
        ValueError: from `init` or `apply`, if logits and image do not fit each other or
            an attribute is not allowed.

    Example:
        >>> crf = CRFRNN(2, method="exact")
        >>> logits, image = jnp.zeros((1, 4, 5, 2)), jnp.zeros((1, 4, 5, 3))
        >>> params = crf.init(jax.random.key(0), logits, image)["params"]
        >>> params["compatibility"].tolist()
        [[-1.0, -0.0], [-0.0, -1.0]]
        >>> crf.apply({"params": params}, logits, image, train=True).shape
        (1, 4, 5, 2)

    Source: Zheng et al. 2015, §4, §5 and the initial values of their code.
    """

    num_classes: int
    spatial_sigma: float | int = 3.0
    bilateral_sigma_xy: float | int = 160.0
    bilateral_sigma_rgb: float | int = 3.0
    train_steps: int = 5
    test_steps: int = 10
    method: Method = "auto"

    @nn.compact
    def __call__(
        self,
        logits: Float[Array | np.ndarray, "b h w k"],
        image: Num[Array | np.ndarray, "b h w c"] | Sequence[ImageKernels],
        train: bool = False,
    ) -> Float[Array, "b h w k"]:
        """Logits of the marginals; see the class."""
        self._check(logits, image)
        k, settings = self.num_classes, self._settings
        spatial, bilateral, compatibility = (
            self.param(name, lambda key, scale=scale: scale * jnp.eye(k))
            for name, scale in _INITIAL.items()
        )
        energies = [
            jnp.matmul(compatibility, weights, precision=jax.lax.Precision.HIGHEST)
            for weights in (spatial, bilateral)
        ]
        steps = self.train_steps if train else self.test_steps

        def refine(pair):
            logits, image = pair

            def use(kernels):
                return _refine(logits, jax.lax.stop_gradient(kernels), energies, steps)

            if isinstance(image, ImageKernels):
                return use(image)
            return with_kernels(jax.lax.stop_gradient(image), settings, use)

        if is_traced(image) and not isinstance(image, Sequence):
            return jax.lax.map(refine, (logits, image))
        return jnp.stack([refine(pair) for pair in zip(logits, image, strict=True)])

    def prepare(self, image: Num[Array | np.ndarray, "h w c"]) -> ImageKernels:
        """Return what depends on an image alone, to use in place of the image.

        Args:
            image: one image, colours 0..255.
        """
        return image_kernels(image, self._settings)

    @property
    def _settings(self) -> KernelSettings:
        sigmas = self.spatial_sigma, self.bilateral_sigma_xy, self.bilateral_sigma_rgb
        return KernelSettings(*sigmas, normalization="after", method=self.method)

    def _check(self, logits, image) -> None:
        for name in SIGMAS:
            check_number(name, getattr(self, name), positive=True)
        for name in ("train_steps", "test_steps"):
            check_iterations(name, getattr(self, name))
        if isinstance(image, Sequence):
            images = [kernels.size for kernels in image]
        else:
            images = [image.shape[1:3]] * len(image)
        fits = images == [logits.shape[1:3]] * len(logits)
        if not fits or logits.shape[3] != self.num_classes:
            raise ValueError(
                f"logits of shape {logits.shape} for images of (height, width) "
                f"{images}: they are (b, h, w, {self.num_classes}), of the images' size"
            )


def _refine(logits, kernels: ImageKernels, energies, steps: int):
    """Return one image's logits; compiled unless a trace is under way."""
    padded = pad_to_kernels(logits, kernels, fill=0.0)
    run = _run if is_traced(padded, kernels, energies) else compiled(_run, "steps")
    height, width = kernels.size
    pair = kernels.spatial, kernels.bilateral
    return run(padded, pair, energies, steps=steps)[:height, :width]


def _run(logits, kernels, energies, steps: int):
    terms = [Pairwise(*pair) for pair in zip(kernels, energies, strict=True)]
    flat = logits.reshape(-1, logits.shape[-1])
    return mean_field(flat, terms, steps).reshape(logits.shape)
