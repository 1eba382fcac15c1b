"""The two kernels of an image (Krähenbühl & Koltun 2011, §3).

The spatial ("smoothness") kernel sees positions, and the bilateral ("appearance")
kernel positions and colours. What depends on the image alone (features, filters,
normalization) is computed once, for all iterations, classes and calls (§3.2).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from dilax.crf.filters import Filter, GridFilter, Method, build_filter, cut_radius
from dilax.crf.lattice import with_lattice
from dilax.runtime import jit

Normalization = Literal["symmetric", "none", "before", "after"]
_TINY = 1e-20


@struct.dataclass
class Kernel:
    """A filter between two scalings of the pixels: after · filter(before · values).

    Attributes:
        filter: the filter.
        before: factors of what goes in, (n, 1).
        after: factors of what comes out, (n, 1).
    """

    filter: Filter
    before: Float[Array, "..."] | float = 1.0
    after: Float[Array, "..."] | float = 1.0

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return the messages to all pixels, including each pixel's own."""
        return self.filter(values * self.before) * self.after


@functools.partial(jax.jit, static_argnames=("normalization", "points"))
def normalize(
    filter: Filter,
    normalization: Normalization,
    points: int,
    valid: Bool[Array, "n"] | None = None,
) -> Kernel:
    """Normalize a filter by n_i = Σ_j k(i, j), as the reference code does.

    `"symmetric"` divides by √n before and after the filter, `"before"` and `"after"` by
    n on that side, and `"none"` not at all.

    Args:
        filter: the filter.
        normalization: see above.
        points: how many values the filter takes.
        valid: points that count; the others are not scaled. None means all.
    """
    if normalization == "none":
        return Kernel(filter)
    # Behind a barrier: with the options of `dilax.runtime.jit`, XLA's CPU backend
    # (jaxlib 0.10.2) multiplies matrices by constant ones wrongly.
    ones = lax.optimization_barrier(jnp.ones((points, 1)))
    norm = filter(ones) + _TINY
    if valid is not None:
        norm = jnp.where(valid[:, None], norm, 1)
    if normalization == "symmetric":
        return Kernel(filter, norm**-0.5, norm**-0.5)
    return Kernel(filter, **{normalization: 1 / norm})


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
        return _kernels(None, image, None, settings)
    height, width, _ = image.shape
    padding = [(0, -n % SIDE) for n in (height, width)]
    # A concrete image has concrete kernels, also while a function around it is traced.
    with jax.ensure_compile_time_eval():
        padded = jnp.asarray(np.pad(np.asarray(image), [*padding, (0, 0)]))
        valid = jnp.asarray(np.pad(np.ones((height, width), bool), padding).ravel())
        kernels = _kernels(None, padded, valid, settings)
    return dataclasses.replace(kernels, size=(height, width))


def with_kernels(
    image: Num[Array | np.ndarray, "h w c"],
    settings: KernelSettings,
    use: Callable[[ImageKernels], T],
) -> T:
    """Return `use` of an image's kernels.

    If the image is traced, the lattice's size is chosen while the program runs
    (`with_lattice`).

    Args:
        image: as for `image_kernels`.
        settings: as for `image_kernels`.
        use: may be traced several times.
    """
    if settings.method == "exact" or not is_traced(image):
        return use(image_kernels(image, settings))
    features = _features(image, settings)
    return with_lattice(
        features, None, lambda lattice: use(_kernels(lattice, image, None, settings))
    )


def is_traced(*trees: Any) -> bool:
    """Return whether any array is a tracer of `jax.jit`, `jax.grad` or `jax.vmap`."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def pad_to_kernels(
    values: Float[Array | np.ndarray, "h w k"], kernels: ImageKernels, fill: float
) -> Float[Array, "h2 w2 k"]:
    """Pad values of an image's pixels as its kernels are; at least float32."""
    pairs = zip(kernels.size, kernels.padded, strict=True)
    widths = [*((0, side - n) for n, side in pairs), (0, 0)]
    pad = jnp.pad if isinstance(values, jax.Array) else np.pad
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    return jnp.asarray(pad(values, widths, constant_values=fill), dtype)


@functools.cache
def compiled(function: Callable, *static: str) -> Callable:
    """Return the function compiled, once for all callers."""
    return jit(function, static_argnames=static)


def _features(image, settings: KernelSettings):
    sigmas = settings.bilateral_sigma_xy, settings.bilateral_sigma_rgb
    return bilateral_features(image, *sigmas)


def _kernels(bilateral, image, valid, settings: KernelSettings) -> ImageKernels:
    """Return the kernels of a (padded) image; its bilateral filter may be given."""
    height, width, _ = image.shape
    sigma, method = settings.spatial_sigma, settings.method
    if bilateral is None:
        bilateral = build_filter(_features(image, settings), valid, method)
    if method == "lattice":
        spatial = build_filter(spatial_features(height, width, sigma), valid, method)
    else:
        whole = method == "exact" or is_traced(sigma)
        radius = None if whole else cut_radius(float(sigma))
        spatial = GridFilter(jnp.asarray(sigma, float), valid, height, width, radius)
    size = height, width
    spatial, bilateral = (
        normalize(filter, settings.normalization, height * width, valid)
        for filter in (spatial, bilateral)
    )
    return ImageKernels(
        spatial=spatial, bilateral=bilateral, valid=valid, size=size, padded=size
    )
