"""The two kernels of one image, ready for any number of inferences.

What depends on the image alone (features, filters, normalisation) is computed once and
serves every iteration, class and call (Krähenbühl & Koltun 2011, §3.2).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from dilax.crf.filtering import Filter, Method, build_filter
from dilax.crf.grid import GridFilter, cut_radius
from dilax.crf.kernels import (
    Kernel,
    Normalization,
    bilateral_features,
    normalize,
    spatial_features,
)
from dilax.ops import jit

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
    """

    spatial: Kernel
    bilateral: Kernel
    valid: Bool[Array, "n"] | None
    size: tuple[int, int] = struct.field(pytree_node=False)
    padded: tuple[int, int] = struct.field(pytree_node=False)


def image_kernels(
    image: Num[Array | np.ndarray, "h w c"],
    sigmas: tuple[ArrayLike, ArrayLike, ArrayLike],
    normalization: Normalization,
    method: Method,
) -> ImageKernels:
    """The kernels of an image.

    A concrete image is padded to multiples of `SIDE`, which the results do not see, and
    prepared by compiled functions; a traced one is taken as it is.

    Args:
        image: colours 0..255.
        sigmas: bandwidths: spatial, bilateral in pixels, bilateral in colours.
        normalization: see `normalize`.
        method: see `DenseCRF`.
    """
    height, width, _ = image.shape
    size, options = (height, width), (sigmas, normalization, method)
    if is_traced(image):
        return _build(image, None, size, *options, _as_is)
    padding = [(0, -n % SIDE) for n in size]
    with jax.ensure_compile_time_eval():
        padded = jnp.asarray(np.pad(np.asarray(image), [*padding, (0, 0)]))
        valid = jnp.asarray(np.pad(np.ones(size, bool), padding).ravel())
        return _build(padded, valid, size, *options, compiled)


def is_traced(*trees: Any) -> bool:
    """Whether any of the arrays is a tracer of `jax.jit`, `jax.grad` or `jax.vmap`."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def pad_to_kernels(
    values: Float[Array | np.ndarray, "h w k"], kernels: ImageKernels, fill: float
) -> Float[Array, "h2 w2 k"]:
    """Values of an image's pixels, padded as its kernels are; at least float32."""
    pairs = zip(kernels.size, kernels.padded, strict=True)
    widths = [*((0, side - n) for n, side in pairs), (0, 0)]
    pad = jnp.pad if isinstance(values, jax.Array) else np.pad
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    return jnp.asarray(pad(values, widths, constant_values=fill), dtype)


@functools.cache
def compiled(function: Callable, *static: str) -> Callable:
    """The function jitted, one for all callers."""
    return jit(function, static_argnames=static)


def _as_is(function: Callable, *static: str) -> Callable:
    return function


def _build(image, valid, size, sigmas, normalization, method, jitted) -> ImageKernels:
    """`jitted` is `compiled`, or `_as_is` where a trace is under way."""
    height, width, _ = image.shape
    spatial_sigma, sigma_xy, sigma_rgb = sigmas
    normal = jitted(normalize, "normalization")
    features = jitted(bilateral_features)(image, sigma_xy, sigma_rgb)
    bilateral = build_filter(features, valid, method)
    grid = _spatial_filter(height, width, spatial_sigma, valid, method)
    like = features[:, 0]
    return ImageKernels(
        spatial=normal(grid, normalization=normalization, like=like),
        bilateral=normal(bilateral, normalization=normalization, like=like),
        valid=valid,
        size=size,
        padded=(height, width),
    )


def _spatial_filter(height, width, sigma, valid, method: Method) -> Filter:
    """Along the axes, cut for `"auto"` and whole for `"exact"`; or by the lattice."""
    if method == "lattice":
        return build_filter(spatial_features(height, width, sigma), valid, method)
    whole = method == "exact" or is_traced(sigma)
    radius = None if whole else cut_radius(sigma)
    return GridFilter(jnp.asarray(sigma, float), valid, height, width, radius)
