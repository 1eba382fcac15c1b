"""The two kernels of an image (Krähenbühl & Koltun 2011, §3).

The spatial ("smoothness") kernel sees positions, and the bilateral ("appearance")
kernel positions and colours. What depends on the image alone (features, filters,
normalization) is computed once, for all iterations, classes and calls (§3.2).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from dilax.crf.filters import (
    GridFilter,
    Kernel,
    Method,
    Normalization,
    build_filter,
    cut_radius,
    normalize,
)
from dilax.crf.lattice import with_lattice
from dilax.runtime import jit


def spatial_features(height: int, width: int, sigma: ArrayLike) -> Float[Array, "n 2"]:
    """Return (x, y) / sigma of the pixels of a grid, row by row."""
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([x, y], -1).reshape(-1, 2) / jnp.asarray(sigma)


@jax.jit
def bilateral_features(
    image: Num[Array, "h w c"], sigma_xy: ArrayLike, sigma_rgb: ArrayLike
) -> Float[Array, "n d"]:
    """Return (x, y) / sigma_xy and colours / sigma_rgb, row by row; d = 2 + c."""
    height, width, channels = image.shape
    positions = spatial_features(height, width, sigma_xy)
    colours = image.reshape(-1, channels) / jnp.asarray(sigma_rgb)
    dtype = jnp.result_type(positions, colours)
    return jnp.concatenate([positions.astype(dtype), colours.astype(dtype)], 1)


T = TypeVar("T")

SIDE = 64
"""Eager calls pad images to multiples of this, so that few sizes are compiled."""


@struct.dataclass
class ImageKernels:
    """An image as a dense CRF sees it; from `DenseCRF.prepare`.

    Attributes:
        spatial: the kernel of positions.
        bilateral: the kernel of positions and colours.
        valid: pixels that are the image's, not padding; None means all.
        size: (h, w) of the image.
        padded: (h, w) with the padding, below and on the right.

    Example:
        >>> import numpy as np
        >>> from dilax.crf import DenseCRF
        >>> kernels = DenseCRF(method="exact").prepare(np.zeros((4, 5, 3), np.uint8))
        >>> kernels.size
        (4, 5)
    """

    spatial: Kernel
    bilateral: Kernel
    valid: Bool[Array, "n"] | None
    size: tuple[int, int] = struct.field(pytree_node=False)
    padded: tuple[int, int] = struct.field(pytree_node=False)


class KernelSettings(NamedTuple):
    """What the kernels of an image depend on besides the image; see `DenseCRF`."""

    spatial_sigma: float | int | Array
    bilateral_sigma_xy: float | int | Array
    bilateral_sigma_rgb: float | int | Array
    normalization: Normalization
    method: Method


SIGMAS = ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb")


def check_number(name: str, value: Any, positive: bool = False) -> Any:
    """Return a bandwidth (positive) or a weight as a float, or a traced one as it is.

    Raises:
        ValueError: if it is not finite, or not positive.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (positive and number <= 0):
        kind = "bandwidth is finite and above 0" if positive else "weight is finite"
        raise ValueError(f"{name}={value!r}: a {kind}")
    return number


def check_iterations(name: str, value: Any) -> int:
    """Return a number of iterations as an int.

    Raises:
        ValueError: unless it is a whole number ≥ 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name}={value!r}: iterations are a whole number, 0 or more")
    return int(value)


def image_kernels(
    image: Num[Array | np.ndarray, "h w c"], settings: KernelSettings
) -> ImageKernels:
    """Return the kernels of an image.

    A concrete image is padded to multiples of `SIDE`, which does not change results. A
    traced image is not padded, and its lattice has room for the worst case.

    Args:
        image: colours 0..255.
        settings: bandwidths, normalization and method.
    """
    if is_traced(image):
        return _kernels(image, settings)
    height, width, _ = image.shape
    padding = [(0, -n % SIDE) for n in (height, width)]
    # A concrete image has concrete kernels, also while a function around it is traced.
    with jax.ensure_compile_time_eval():
        padded = jnp.asarray(np.pad(np.asarray(image), [*padding, (0, 0)]))
        valid = jnp.asarray(np.pad(np.ones((height, width), bool), padding).ravel())
        kernels = _kernels(padded, settings, valid)
    return dataclasses.replace(kernels, size=(height, width))


def with_kernels(
    image: Num[Array | np.ndarray, "h w c"] | ImageKernels,
    settings: KernelSettings,
    use: Callable[[ImageKernels], T],
) -> T:
    """Return `use` of an image's kernels.

    If the image is traced, the lattice's size is chosen while the program runs
    (`with_lattice`).

    Args:
        image: as for `image_kernels`, or its result.
        settings: as for `image_kernels`.
        use: may be traced several times.
    """
    if isinstance(image, ImageKernels):
        return use(image)
    if settings.method == "exact" or not is_traced(image):
        return use(image_kernels(image, settings))
    sigmas = settings.bilateral_sigma_xy, settings.bilateral_sigma_rgb
    return with_lattice(
        bilateral_features(image, *sigmas),
        None,
        lambda lattice: use(_kernels(image, settings, bilateral=lattice)),
    )


def over_batch(refine: Callable, values: Any, images: Any) -> Array:
    """Return `refine(values, image)` of each image of a batch, one by one.

    Only traced images are mapped: the kernels of others need less memory and time.
    """
    if is_traced(images) and not isinstance(images, Sequence):
        return jax.lax.map(lambda pair: refine(*pair), (values, images))
    return jnp.stack([refine(*pair) for pair in zip(values, images, strict=True)])


def is_traced(*trees: Any) -> bool:
    """Return whether any array is a tracer of `jax.jit`, `jax.grad` or `jax.vmap`."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def _kernels(
    image: Any, settings: KernelSettings, valid: Any = None, bilateral: Any = None
) -> ImageKernels:
    """Return the kernels of a (padded) image; its bilateral filter may be given."""
    height, width, _ = image.shape
    sigma, method = settings.spatial_sigma, settings.method
    if bilateral is None:
        sigmas = settings.bilateral_sigma_xy, settings.bilateral_sigma_rgb
        features = bilateral_features(image, *sigmas)
        bilateral = build_filter(features, valid, method)
    # A grid's kernel is separable, and its exact sum is faster than the lattice. It is
    # cut at a number of pixels, which a traced bandwidth does not have.
    if method == "lattice":
        spatial = build_filter(spatial_features(height, width, sigma), valid, method)
    else:
        whole = method == "exact" or is_traced(sigma)
        radius = None if whole else cut_radius(float(sigma))
        spatial = GridFilter(jnp.asarray(sigma, float), valid, height, width, radius)
    spatial, bilateral = (
        normalize(filter, settings.normalization, height * width, valid)
        for filter in (spatial, bilateral)
    )
    size = height, width
    return ImageKernels(spatial, bilateral, valid, size=size, padded=size)


def on_pixels(
    function: Callable,
    values: Float[Array | np.ndarray, "h w k"],
    kernels: ImageKernels,
    fill: float,
    energies: Any,
    steps: int,
) -> Any:
    """Call a function on values of an image's pixels, padded as its kernels are.

    It is compiled, once for all callers, unless a trace is under way.

    Args:
        function: of the padded values, in float32 at least, the pair of kernels, the
            energies, which pixels are valid, and the number of steps.
        values: of the image's pixels.
        kernels: the image's.
        fill: value of the padding.
        energies: one per kernel, see `Pairwise`.
        steps: compiled in.
    """
    sides = zip(kernels.size, kernels.padded, strict=True)
    widths = [*((0, padded - n) for n, padded in sides), (0, 0)]
    pad = jnp.pad if isinstance(values, jax.Array) else np.pad
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    whole = jnp.asarray(pad(values, widths, constant_values=fill), dtype)
    if not is_traced(whole, kernels, energies):
        function = _compiled(function)
    pair = kernels.spatial, kernels.bilateral
    return function(whole, pair, energies, kernels.valid, steps=steps)


@functools.cache
def _compiled(function: Callable) -> Callable:
    return jit(function, static_argnames="steps")
