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
from PIL import Image

from dilax.crf.filters import Method, Normalization
from dilax.crf.kernels import (
    SIGMAS,
    ImageKernels,
    KernelSettings,
    check_iterations,
    check_number,
    image_kernels,
    is_traced,
    on_pixels,
    over_batch,
    with_kernels,
)
from dilax.crf.mean_field import Energy, energies, pairwise_terms, refined
from dilax.data.pixels import as_numbers, upright_rgb

Scalar = float | int | Array

MIN_PROBABILITY = 1e-8
"""Smaller probabilities count as this, so that no class is ruled out by −log 0."""

SUM_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a pixel may add up."""

_ROUNDING = 0.02  # of 16-bit probabilities, in the sum over the classes


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
    (h, w, c) uint8, or what `prepare` returned for it. Lists, PyTorch tensors and PIL
    images are also accepted. Batches (b, h, w, k) with (b, h, w, c), or with a list
    of prepared images, are processed one by one. Returns the marginals, float32
    (float64 for float64).

    Attributes:
        spatial_sigma: bandwidth of the spatial kernel, in pixels.
        spatial_weight: its weight.
        bilateral_sigma_xy: bandwidth of the bilateral kernel, in pixels.
        bilateral_sigma_rgb: its bandwidth in colour levels, 0..255.
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
        keep("compatibility", _nested_floats(self.compatibility))
        choices = {"normalization": Normalization, "method": Method}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise ValueError(
                    f"{name}={value!r}: must be one of {get_args(allowed)}"
                )

    def __call__(self, probabilities: Any, image: Any) -> Float[Array, "*b h w k"]:
        """Return the marginals; see the class."""
        probabilities = _as_array("probabilities", probabilities)
        if not (isinstance(image, Sequence) and isinstance(image[0], ImageKernels)):
            image = _as_array("image", image)
        if hasattr(image, "shape"):
            _check_layout(probabilities.shape, image.shape)
        if probabilities.ndim == 4:
            if len(image) != len(probabilities):
                raise ValueError(
                    f"{len(probabilities)} maps of probabilities and {len(image)} "
                    "images: a batch has one image for each map"
                )
            return over_batch(self, probabilities, image)

        def infer(kernels: ImageKernels):
            height, width = kernels.size
            return self._run(_marginals, probabilities, kernels)[:height, :width]

        return self._with_kernels(image, infer)

    def prepare(self, image: Any) -> ImageKernels:
        """Return what depends on the image, the bandwidths, normalization and method.

        It can be used in place of the image in any number of calls, also of CRFs with
        other weights, compatibilities and iterations.
        """
        image = _as_array("image", image)
        _check_image(image)
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

    def _with_kernels(self, image, use):
        if not isinstance(image, ImageKernels):
            _check_image(image)
        return with_kernels(image, self._settings, use)

    @property
    def _settings(self) -> KernelSettings:
        sigmas = self.spatial_sigma, self.bilateral_sigma_xy, self.bilateral_sigma_rgb
        return KernelSettings(*sigmas, self.normalization, self.method)

    def _run(self, function, probabilities, kernels: ImageKernels):
        labels = None if self.compatibility is None else len(self.compatibility)
        _check_probabilities(probabilities, kernels.size, labels)
        mu = 1.0 if self.compatibility is None else np.asarray(self.compatibility)
        weights = mu * self.spatial_weight, mu * self.bilateral_weight
        fill = 1 / probabilities.shape[-1]
        return on_pixels(
            function, probabilities, kernels, fill, weights, self.iterations
        )


def _marginals(probabilities, kernels, weights, valid, steps):
    logits = refined(_logits(probabilities), kernels, weights, valid, steps)
    return jax.nn.softmax(logits)


def _energies(probabilities, kernels, weights, valid, steps):
    logits = _logits(probabilities).reshape(-1, probabilities.shape[-1])
    return energies(logits, pairwise_terms(kernels, weights), steps, valid)


def _logits(probabilities):
    return jnp.log(jnp.maximum(probabilities, MIN_PROBABILITY))


def _nested_floats(value: Any) -> tuple | None:
    """Return a compatibility as nested tuples, which can be hashed."""
    if value is None:
        return None
    matrix = np.asarray(value, float)
    square = matrix.ndim in (1, 2) and len(set(matrix.shape)) == 1
    if not square or not np.isfinite(matrix).all():
        raise ValueError(
            f"compatibility of shape {matrix.shape} is not (k, k) or (k,) of finite "
            "numbers: the energy of every pair of labels, or of equal labels"
        )
    rows = matrix.tolist()
    return tuple(tuple(row) if matrix.ndim == 2 else row for row in rows)


def _as_array(name: str, value: Any) -> Any:
    """Return a list, a PIL image or a tensor as a NumPy array; arrays as they are.

    Integers of 0..255 in lists become uint8. Probabilities of 16 bits become float32
    and are divided by their sum, which rounding has changed.

    Raises:
        ValueError: naming the argument, if it is not an array.
    """
    if isinstance(value, jax.core.Tracer | ImageKernels):
        return value
    if not isinstance(value, jax.Array | np.ndarray):
        if isinstance(value, Image.Image):
            return upright_rgb(value)
        value = as_numbers(name, value)
        if value.dtype.kind not in "fiub" and value.dtype != jnp.bfloat16:
            raise ValueError(f"{name} is not an array of numbers, all of one size")
    if value.dtype in (jnp.bfloat16, jnp.float16):
        value = jnp.asarray(value, jnp.float32)
        sums = value.sum(-1, keepdims=True)
        if value.size and jnp.abs(sums - 1).max() < _ROUNDING:
            value = value / sums
    return value


def _check_layout(shape: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Refuse probabilities or an image that would fit if they were transposed.

    Args:
        shape: of the probabilities, (h, w, k).
        image: shape of the image, (h, w, c).
    """
    if len(image) == 3 and len(shape) == 4:
        raise ValueError(
            f"probabilities of shape {shape} are a batch, but the image of shape "
            f"{image} is a single one: give probabilities[0], (h, w, k), or image[None]"
        )
    if len(image) != 3 or (len(shape) == 3 and shape[:2] == image[:2]):
        return
    h, w = image[:2]
    names = {"(k, h, w)": (1, 2, 0), "(w, h, k)": (1, 0, 2), "(k, w, h)": (2, 1, 0)}
    for name, order in names.items():
        if len(shape) == 3 and tuple(shape[i] for i in order[:2]) == (h, w):
            raise ValueError(
                f"probabilities are (h, w, k); yours of shape {shape} look like {name} "
                f"beside an image of {h}×{w}: transpose{order}"
            )
    if len(shape) == 2 and h * w in shape:
        flat = shape[0] == h * w
        name, mend = ("(h·w, k)", "") if flat else ("(k, h·w)", ".T")
        raise ValueError(
            f"probabilities are (h, w, k); yours of shape {shape} look like {name}: "
            f"probabilities{mend}.reshape({h}, {w}, -1)"
        )
    if len(shape) == 3 and shape[:2] == image[1:]:
        raise ValueError(
            f"an image is (h, w, c); yours of shape {image} looks like (c, h, w): "
            "transpose(1, 2, 0)"
        )


def _check_image(image: Any) -> None:
    """Refuse an image that is not (h, w, c) of uint8, or traced floats."""
    allowed = image.dtype == np.uint8
    if isinstance(image, jax.core.Tracer):
        allowed = allowed or jnp.issubdtype(image.dtype, jnp.floating)
    if image.ndim != 3 or 0 in image.shape or not allowed:
        raise ValueError(
            f"image of shape {image.shape} and type {image.dtype} is not (h, w, c) "
            "uint8: colours are 0..255, and the colour bandwidth is in these units; "
            "for an image in 0..1, give (255 * image).astype(np.uint8)"
        )


def _check_probabilities(
    probabilities: Any, size: tuple[int, int], labels: int | None
) -> None:
    """Refuse arrays that do not fit the image, or are not probabilities."""
    shape, dtype = probabilities.shape, probabilities.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"probabilities of type {dtype} are not floats")
    if len(shape) != 3 or shape[-1] == 0:
        raise ValueError(f"probabilities of shape {shape} are not (h, w, k)")
    if shape[:2] != size:
        raise ValueError(
            f"probabilities of {shape[0]}×{shape[1]} pixels and an image of "
            f"{size[0]}×{size[1]}: resize the probabilities to the image"
        )
    if labels is not None and shape[-1] != labels:
        raise ValueError(
            f"probabilities of {shape[-1]} classes and a compatibility of {labels}"
        )
    if is_traced(probabilities):
        return
    values = np.asarray(probabilities, np.float32)
    sums = values @ np.ones(shape[-1], np.float32)
    off = np.nan_to_num(abs(sums - 1), nan=np.inf)
    row, column = divmod(int(off.argmax()), shape[1])
    pixel, total = f"pixel {row, column} (row, column)", sums[row, column]
    if not np.isfinite(total):
        raise ValueError(
            f"probabilities of {pixel} add up to {total}: they must be finite"
        )
    if (low := values.min()) < 0:
        at = divmod(int(values.argmin()) // shape[-1], shape[1])
        raise ValueError(
            f"probability {low:.4g} at pixel {at} (row, column) is negative: give "
            "probabilities, the softmax of logits"
        )
    if off[row, column] > SUM_TOLERANCE:
        raise ValueError(
            f"probabilities of {pixel} add up to {total:.6g}, not to 1: give the "
            "softmax of logits, or normalize them"
        )
