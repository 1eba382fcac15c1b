"""CRF-RNN: the mean field as a layer that is trained (Zheng et al. 2015, §4).

The paper's third architecture. Its weights begin as a dense CRF's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num

from dilax.crf import arguments
from dilax.crf.filtering import Method
from dilax.crf.image_kernels import ImageKernels, image_kernels
from dilax.crf.mean_field import Pairwise, mean_field


def _scaled_identity(scale: float) -> Callable:
    return lambda key, shape: scale * jnp.eye(*shape)


class CRFRNN(nn.Module):
    """Unrolled mean field with class-wise kernel weights and a trained compatibility.

    Each step: softmax; both Gaussian filters, each divided by its filter of ones;
    class-wise weights W_s and W_b; compatibility μ; the logits minus that. So
    logits ← U − μ (W_s m_s + W_b m_b), with Potts (μ = −I) and weights 3 and 5 at
    first.

    Args of `__call__`: logits (b, h, w, k), unnormalised or logarithms of
    probabilities; image (b, h, w, c), colours 0..255 as integers or floats; `train`
    takes `train_steps`. Returns logits of the marginals (b, h, w, k), float32, or
    float64 for float64. An image's kernels are built once for all steps. No gradient
    reaches the image.

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
    spatial_sigma: float = 3.0
    bilateral_sigma_xy: float = 160.0
    bilateral_sigma_rgb: float = 3.0
    train_steps: int = 5
    test_steps: int = 10
    method: Method = "auto"

    @nn.compact
    def __call__(
        self,
        logits: Float[Array, "b h w k"],
        image: Num[Array, "b h w c"],
        train: bool = False,
    ) -> Float[Array, "b h w k"]:
        """Logits of the marginals; see the class."""
        self._check(logits, image)
        spatial, bilateral, compatibility = self._matrices()
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        energies = [
            jnp.matmul(compatibility, weights, precision=jax.lax.Precision.HIGHEST)
            for weights in (spatial, bilateral)
        ]
        steps = self.train_steps if train else self.test_steps

        def run(logits, image):
            return self._refine(logits, self._kernels(image), energies, steps)

        return jax.vmap(run)(logits, jax.lax.stop_gradient(image))

    def _matrices(self):
        shape = (self.num_classes, self.num_classes)
        names = {
            "spatial_weights": 3.0,
            "bilateral_weights": 5.0,
            "compatibility": -1.0,
        }
        return [self.param(n, _scaled_identity(v), shape) for n, v in names.items()]

    def _kernels(self, image) -> ImageKernels:
        sigmas = self.spatial_sigma, self.bilateral_sigma_xy, self.bilateral_sigma_rgb
        return image_kernels(image, sigmas, "after", self.method)

    def _refine(self, logits, kernels: ImageKernels, energies, steps: int):
        pair = kernels.spatial, kernels.bilateral
        terms = [Pairwise(k, e) for k, e in zip(pair, energies, strict=True)]
        flat = logits.reshape(-1, self.num_classes)
        return mean_field(flat, terms, steps).reshape(logits.shape)

    def _check(self, logits, image) -> None:
        for name in ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
            arguments.check_bandwidth(name, getattr(self, name))
        for name in ("train_steps", "test_steps"):
            arguments.check_iterations(name, getattr(self, name))
        if logits.shape[:3] != image.shape[:3] or logits.shape[3] != self.num_classes:
            raise ValueError(
                f"logits of shape {logits.shape} for an image of shape {image.shape}: "
                f"they are (b, h, w, {self.num_classes}) of its (b, h, w)"
            )
