"""The dense CRF on full-resolution probabilities (Krähenbühl & Koltun 2011; §5).

The second architecture of §5 of the paper: a fully connected CRF after the network.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from dilax.crf.checks import (
    as_array,
    check_image,
    check_iterations,
    check_layout,
    check_number,
    check_probabilities,
    checked_compatibility,
)
from dilax.crf.filters import Method
from dilax.crf.kernels import (
    ImageKernels,
    KernelSettings,
    Normalization,
    compiled,
    image_kernels,
    is_traced,
    pad_to_kernels,
    with_kernels,
)
from dilax.crf.mean_field import Energy, Pairwise, energies, mean_field

Scalar = float | int | Array

SIGMAS = ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb")

MIN_PROBABILITY = 1e-8
"""Smaller probabilities count as this, so that no class is ruled out by −log 0."""


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """Mean-field marginals of a fully connected CRF over an image's pixels.

    Energies: −log p of the pixels; between two pixels, −weight for equal labels (Potts)
    times exp(−½‖Δposition‖²/spatial_sigma²), and the same with bilateral_weight and
    exp(−½‖Δposition‖²/bilateral_sigma_xy² − ½‖Δcolour‖²/bilateral_sigma_rgb²).

    `crf(probabilities, image)` takes arrays and checks them; images are padded so that
    few sizes are compiled. Inside `jax.jit`, `jax.grad` and `jax.vmap` it takes tracers
    and does not check values. Bandwidths, weights and compatibilities are not compiled
    in, so a search over them compiles once.

    Args of a call: probabilities (h, w, k) float that add up to 1 in every pixel to
    1e-3 (to 0.02 if they have 16 bits; values below 1e-8 count as 1e-8), and an image
    (h, w, c) uint8, or what `prepare` returned for it. Lists, tensors of PyTorch and
    PIL images are also accepted. Batches (b, h, w, k) with (b, h, w, c), or with a list
    of prepared images, are processed one by one. Returns the marginals, float32
    (float64 for float64).

    Attributes:
        spatial_sigma: bandwidth of the spatial kernel, in pixels.
        spatial_weight: its weight.
        bilateral_sigma_xy: bandwidth of the bilateral kernel, in pixels.
        bilateral_sigma_rgb: its bandwidth in colours of 0..255.
        bilateral_weight: its weight.
        iterations: updates of the mean field; 0 returns the probabilities.
        compatibility: energy μ(l, l') of labels l beside l', (k, k); or of equal
            labels, (k,). It is multiplied by the weights. None is Potts: −1 for equal
            labels.
        normalization: of each kernel by its sums n over the pixels: `"symmetric"` by √n
            on both sides, `"before"` or `"after"` the filter by n, or `"none"`.
        method: `"auto"` sums the spatial kernel along the axes and the bilateral one by
            the permutohedral lattice; `"lattice"` uses the lattice for both, as
            pydensecrf does; `"exact"` sums both as they are defined, in N² steps.

    Raises:
        ValueError: if an argument is not allowed; from a call, if probabilities or
            image are not allowed.

    Example:
        >>> probabilities = np.full((4, 5, 2), 0.5, np.float32)
        >>> probabilities[0, 0] = 0.1, 0.9
        >>> crf = DenseCRF(method="exact", iterations=5)
        >>> marginals = crf(probabilities, np.zeros((4, 5, 3), np.uint8))
        >>> marginals.shape, marginals.argmax(-1).min().item()
        ((4, 5, 2), 1)

    Source: Krähenbühl & Koltun 2011, §3. The default bandwidths of the bilateral kernel
    are those of the authors' example, `DenseCRF(3, 3, 80, 13, 10)`; its other values
    suit large objects, and erase poles and signs.
    """

    spatial_sigma: Scalar = 1.0
    spatial_weight: Scalar = 1.0
    bilateral_sigma_xy: Scalar = 80.0
    bilateral_sigma_rgb: Scalar = 13.0
    bilateral_weight: Scalar = 1.0
    iterations: int = 10
    _: dataclasses.KW_ONLY
    compatibility: Any = None
    normalization: Normalization = "symmetric"
    method: Method = "auto"

    def __post_init__(self):
        keep = functools.partial(object.__setattr__, self)
        for name in SIGMAS:
            keep(name, check_number(name, getattr(self, name), positive=True))
        for name in ("spatial_weight", "bilateral_weight"):
            keep(name, check_number(name, getattr(self, name)))
        keep("iterations", check_iterations("iterations", self.iterations))
        keep("compatibility", checked_compatibility(self.compatibility))
        choices = {"normalization": Normalization, "method": Method}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise ValueError(
                    f"{name}={value!r}: must be one of {get_args(allowed)}"
                )

    def __call__(self, probabilities: Any, image: Any) -> Float[Array, "*b h w k"]:
        """Return the marginals; see the class."""
        probabilities = as_array("probabilities", probabilities)
        if not (isinstance(image, Sequence) and isinstance(image[0], ImageKernels)):
            image = as_array("image", image)
        if hasattr(image, "shape"):
            check_layout(probabilities.shape, image.shape)
        if probabilities.ndim == 4:
            return self._batch(probabilities, image)

        def infer(kernels: ImageKernels):
            height, width = kernels.size
            return self._run(_marginals, probabilities, kernels)[:height, :width]

        return self._with_kernels(image, infer)

    def prepare(self, image: Any) -> ImageKernels:
        """Return what depends on the image, the bandwidths, normalization and method.

        It can be used in place of the image in any number of calls, also of CRFs with
        other weights, compatibilities and iterations.
        """
        image = as_array("image", image)
        check_image(image)
        return image_kernels(image, self._settings)

    def trace(
        self,
        probabilities: Float[Array | np.ndarray, "h w k"],
        image: Num[Array | np.ndarray, "h w c"] | ImageKernels,
    ) -> Energy:
        """Return the parts of KL(Q‖P) before the first and after each iteration.

        Returns:
            Arrays (iterations + 1,); `.kl` is their sum, KL(Q‖P) − log Z.
        """
        return self._with_kernels(
            image, lambda kernels: self._run(_energies, probabilities, kernels)
        )

    def _batch(self, probabilities, images):
        if len(images) != len(probabilities):
            raise ValueError(
                f"{len(probabilities)} maps of probabilities and {len(images)} images: "
                "a batch has one image for each map"
            )
        if is_traced(probabilities, images) and not isinstance(images, Sequence):
            return jax.lax.map(lambda pair: self(*pair), (probabilities, images))
        pairs = zip(probabilities, images, strict=True)
        return jnp.stack([self(p, image) for p, image in pairs])

    def _with_kernels(self, image, use):
        if isinstance(image, ImageKernels):
            return use(image)
        check_image(image)
        return with_kernels(image, self._settings, use)

    @property
    def _settings(self) -> KernelSettings:
        sigmas = self.spatial_sigma, self.bilateral_sigma_xy, self.bilateral_sigma_rgb
        return KernelSettings(*sigmas, self.normalization, self.method)

    def _run(self, function, probabilities, kernels: ImageKernels):
        """Call `function` on padded probabilities, compiled unless it is traced."""
        labels = None if self.compatibility is None else len(self.compatibility)
        check_probabilities(probabilities, kernels.size, labels)
        fill = 1 / probabilities.shape[-1]
        padded = pad_to_kernels(probabilities, kernels, fill)
        if not is_traced(probabilities, kernels):
            function = compiled(function, "iterations")
        mu = 1.0 if self.compatibility is None else np.asarray(self.compatibility)
        weights = mu * self.spatial_weight, mu * self.bilateral_weight
        pair = kernels.spatial, kernels.bilateral
        return function(
            padded, pair, weights, kernels.valid, iterations=self.iterations
        )


def _marginals(probabilities, kernels, compatibilities, valid, iterations):
    logits, terms = _model(probabilities, kernels, compatibilities)
    logits = mean_field(logits, terms, iterations)
    return jax.nn.softmax(logits).reshape(probabilities.shape)


def _energies(probabilities, kernels, compatibilities, valid, iterations):
    logits, terms = _model(probabilities, kernels, compatibilities)
    return energies(logits, terms, iterations, valid)


def _model(probabilities, kernels, compatibilities):
    """Return −U and the pairwise terms."""
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    logits = jnp.log(jnp.maximum(flat, MIN_PROBABILITY))
    mus = (jnp.asarray(c, logits.dtype) for c in compatibilities)
    return logits, [Pairwise(*pair) for pair in zip(kernels, mus, strict=True)]
