"""The dense CRF on full-resolution probabilities (Krähenbühl & Koltun 2011; §5).

The paper's second architecture: a fully connected CRF after the network.

What a dense CRF refuses, each with the reason and what to do about it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

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

_ROUNDING = 0.02  # of 16-bit probabilities, in the sum over the classes
SUM_TOLERANCE = 1e-3
"""How far from 1 a pixel's probabilities may add up."""


def check_bandwidth(name: str, value: Any) -> Any:
    """The bandwidth as a float; a traced one as it is. ValueError unless it is > 0."""
    return _number(name, value, lambda v: v > 0, "a bandwidth is finite and above 0")


def check_weight(name: str, value: Any) -> Any:
    """The weight as a float; a traced one as it is. ValueError unless it is finite."""
    return _number(name, value, lambda v: True, "a weight is a finite number")


def _number(name: str, value: Any, allowed, expected: str) -> Any:
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and allowed(number)):
        raise ValueError(f"{name}={value!r}: {expected}")
    return number


def check_iterations(name: str, value: Any) -> int:
    """The count as an int; ValueError unless it is a whole number ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name}={value!r}: iterations are a whole number, 0 or more")
    return int(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not among {choices}")


def check_compatibility(value: Any) -> tuple | None:
    """Nested tuples of floats, which hash; ValueError unless (k,) or (k, k)."""
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


def as_array(name: str, value: Any) -> Any:
    """A list, a PIL image or a tensor as a NumPy array; arrays and tracers as they are.

    Integers of 0..255 in lists become uint8. Probabilities of 16 bits become float32,
    and add up to 1, which their rounding prevents.

    Raises:
        ValueError: naming the argument, if it is no array.
    """
    if isinstance(value, jax.core.Tracer | ImageKernels):
        return value
    if not isinstance(value, jax.Array | np.ndarray):
        if hasattr(value, "convert"):
            value = value.convert("RGB")
        try:
            value = np.asarray(value)
        except Exception as error:  # of any array library
            raise ValueError(
                f"{name} of type {type(value).__name__} is no array ({error})"
            ) from error
        if value.dtype.kind == "i" and value.size and value.min() >= 0:
            value = value.astype(np.uint8) if value.max() <= 255 else value
        if value.dtype.kind not in "fiub" and value.dtype != jnp.bfloat16:
            raise ValueError(f"{name} is no array of numbers, all of one size")
    if value.dtype in (jnp.bfloat16, jnp.float16):
        value = jnp.asarray(value, jnp.float32)
        sums = value.sum(-1, keepdims=True)
        if value.size and jnp.abs(sums - 1).max() < _ROUNDING:
            value = value / sums
    return value


def check_layout(shape: tuple[int, ...], image: tuple[int, ...]) -> None:
    """ValueError if the probabilities, or the image, fit when they are transposed.

    Args:
        shape: of the probabilities, (h, w, k).
        image: shape of the image, (h, w, c).
    """
    if len(image) == 3 and len(shape) == 4:
        raise ValueError(
            f"probabilities of shape {shape} are a batch, and the image of shape "
            f"{image} is one: give probabilities[0], (h, w, k), or image[None]"
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


def check_image(image: Any) -> None:
    """ValueError unless it is (h, w, c) of uint8; traced images may be floats too."""
    allowed = image.dtype == np.uint8
    if isinstance(image, jax.core.Tracer):
        allowed = allowed or jnp.issubdtype(image.dtype, jnp.floating)
    if image.ndim != 3 or 0 in image.shape or not allowed:
        raise ValueError(
            f"image of shape {image.shape} and type {image.dtype} is not (h, w, c) "
            "uint8: colours are 0..255, which the colour bandwidth is in, too; of an "
            "image in 0..1, give (255 * image).astype(np.uint8)"
        )


def check_shape(probabilities: Any, size: tuple[int, int], labels: int | None) -> None:
    """ValueError unless they are (h, w, k) floats of the image's size."""
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


def worst_pixel(
    probabilities: Float[Array, "h w k"],
) -> tuple[Float[Array, ""], Array, Float[Array, ""], Array]:
    """The sum farthest from 1 and where it is, the smallest value and where it is."""
    sums = probabilities.sum(-1).ravel()
    off = jnp.nan_to_num(abs(sums - 1), nan=jnp.inf)
    low = jnp.nan_to_num(probabilities.min(-1).ravel(), nan=-jnp.inf)
    worst, least = jnp.argmax(off), jnp.argmin(low)
    return sums[worst], worst, low[least], least


def check_worst_pixel(worst: tuple, width: int) -> None:
    """ValueError where `worst_pixel` says that these are no probabilities."""
    total, worst_at, low, low_at = (np.asarray(x).item() for x in worst)
    if not math.isfinite(total):
        raise ValueError(
            f"probabilities of pixel {divmod(worst_at, width)} (row, column) add up to "
            f"{total}: they must be finite"
        )
    if low < 0:
        raise ValueError(
            f"probability {low:.4g} at pixel {divmod(low_at, width)} (row, column) is "
            "negative: give probabilities, the softmax of logits"
        )
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"probabilities of pixel {divmod(worst_at, width)} (row, column) add up to "
            f"{total:.6g}, not to 1: give the softmax of logits, or normalise them"
        )


Scalar = float | int | Array

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
    and leaves out the checks of values. Bandwidths, weights and compatibilities are not
    compiled in: a search over them compiles once.

    Args of a call: probabilities (h, w, k) float that add up to 1 in every pixel to
    1e-3 (to 0.02 those of 16 bits), those below 1e-8 counting as that, and an image
    (h, w, c) uint8, or what `prepare` made of it. Lists, tensors of PyTorch and PIL
    images are taken as well. Batches (b, h, w, k) with (b, h, w, c), or with a list of
    prepared images, are taken one by one.
    Returns the marginals, float32 (float64 for float64).

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
            the permutohedral lattice; `"lattice"` takes the lattice for both, as
            pydensecrf does; `"exact"` sums both as they are defined, in N² steps.

    Raises:
        ValueError: if an argument is not as said, or from a call, if probabilities or
            image are not.

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
        for name in ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
            self._keep(name, check_bandwidth)
        for name in ("spatial_weight", "bilateral_weight"):
            self._keep(name, check_weight)
        self._keep("iterations", check_iterations)
        compatibility = check_compatibility(self.compatibility)
        object.__setattr__(self, "compatibility", compatibility)
        choices = get_args(Normalization)
        check_choice("normalization", self.normalization, choices)
        check_choice("method", self.method, get_args(Method))

    def _keep(self, name: str, checked) -> None:
        object.__setattr__(self, name, checked(name, getattr(self, name)))

    def __call__(self, probabilities: Any, image: Any) -> Float[Array, "*b h w k"]:
        """The marginals; see the class."""
        probabilities = as_array("probabilities", probabilities)
        if not (isinstance(image, Sequence) and isinstance(image[0], ImageKernels)):
            image = as_array("image", image)
        if hasattr(image, "shape"):
            check_layout(probabilities.shape, image.shape)
        if probabilities.ndim == 4:
            return self._batch(probabilities, image)
        return self._with_kernels(image, functools.partial(self._infer, probabilities))

    def prepare(self, image: Any) -> ImageKernels:
        """What depends on the image, the bandwidths, the normalisation and the method.

        It takes the image's place in any number of calls, of CRFs of other weights,
        compatibilities and iterations as well.
        """
        image = as_array("image", image)
        check_image(image)
        return image_kernels(image, self._settings)

    def trace(
        self,
        probabilities: Float[Array | np.ndarray, "h w k"],
        image: Num[Array | np.ndarray, "h w c"] | ImageKernels,
    ) -> Energy:
        """The parts of KL(Q‖P) before the first and after each iteration, to plot.

        Returns:
            Arrays (iterations + 1,); `.kl` is their sum, KL(Q‖P) − log Z.
        """
        run = functools.partial(self._run, _trace, probabilities)
        return self._with_kernels(image, run)

    def _batch(self, probabilities, images):
        if len(images) != len(probabilities):
            raise ValueError(
                f"{len(probabilities)} maps of probabilities and {len(images)} images: "
                "a batch has one image for each"
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

    def _infer(self, probabilities, kernels: ImageKernels):
        height, width = kernels.size
        return self._run(_marginals, probabilities, kernels)[:height, :width]

    def _run(self, function, probabilities, kernels: ImageKernels):
        """`function` of padded probabilities; compiled unless a trace is under way."""
        labels = None if self.compatibility is None else len(self.compatibility)
        check_shape(probabilities, kernels.size, labels)
        fill = 1 / probabilities.shape[-1]
        padded = pad_to_kernels(probabilities, kernels, fill)
        if not is_traced(probabilities, kernels):
            worst = compiled(worst_pixel)(padded)
            check_worst_pixel(worst, padded.shape[1])
            function = compiled(function, "iterations")
        pair = kernels.spatial, kernels.bilateral
        energies = self._compatibilities()
        return function(
            padded, pair, energies, kernels.valid, iterations=self.iterations
        )

    def _compatibilities(self):
        weights = self.spatial_weight, self.bilateral_weight
        if self.compatibility is None:
            return weights
        return tuple(np.asarray(self.compatibility) * w for w in weights)


def _marginals(probabilities, kernels, compatibilities, valid, iterations):
    """(h, w, k) marginals of the padded image."""
    logits, terms = _model(probabilities, kernels, compatibilities)
    logits = mean_field(logits, terms, iterations)
    return jax.nn.softmax(logits).reshape(probabilities.shape)


def _trace(probabilities, kernels, compatibilities, valid, iterations):
    logits, terms = _model(probabilities, kernels, compatibilities)
    return energies(logits, terms, iterations, valid)


def _model(probabilities, kernels, compatibilities):
    """−U and the pairwise terms."""
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    logits = jnp.log(jnp.maximum(flat, MIN_PROBABILITY))
    energies = (jnp.asarray(c, logits.dtype) for c in compatibilities)
    return logits, [Pairwise(*pair) for pair in zip(kernels, energies, strict=True)]
