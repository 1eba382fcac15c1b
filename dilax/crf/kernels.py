"""The two kernels of one image, ready for any number of inferences.

What depends on the image alone (features, filters, normalisation) is computed once and
serves every iteration, class and call (Krähenbühl & Koltun 2011, §3.2).

What a dense CRF knows of an image: its two kernels (Krähenbühl & Koltun 2011, §3).

The spatial ("smoothness") kernel sees positions, the bilateral ("appearance") kernel
positions and colours; each is normalised as the reference implementation offers.
"""

import functools
import math
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
        before: factors of what goes in; None means 1.
        after: factors of what comes out; None means 1.
    """

    filter: Filter
    before: Float[Array, "n"] | None = None
    after: Float[Array, "n"] | None = None

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """The messages of all pixels, each pixel's own included."""
        out = self.filter(_scaled(values, self.before))
        return _scaled(out, self.after)

    def own_weight(self) -> Float[Array, "n"] | float:
        """How much of a pixel's message is its own, where the filter is exact."""
        factors = [f for f in (self.before, self.after) if f is not None]
        return math.prod(factors, start=1.0)


def normalize(
    filter: Filter,
    normalization: Normalization,
    points: int,
    valid: Bool[Array, "n"] | None = None,
) -> Kernel:
    """The filter with the normalisation n_i = Σ_j k(i, j) of the reference code.

    `"symmetric"` divides by √n before and after, `"before"` and `"after"` by n on that
    side, `"none"` nowhere.

    Args:
        filter: the filter.
        normalization: see above.
        points: n, how many values it takes.
        valid: points that count; the others are not scaled. None means all.
    """
    if normalization == "none":
        return Kernel(filter)
    # Behind a barrier: with the options of `dilax.runtime.jit`, XLA's CPU backend
    # (jaxlib 0.10.2) multiplies matrices by constant ones wrongly.
    ones = lax.optimization_barrier(jnp.ones((points, 1)))
    norm = filter(ones)[:, 0] + _TINY
    if valid is not None:
        norm = jnp.where(valid, norm, 1)
    if normalization == "symmetric":
        return Kernel(filter, norm**-0.5, norm**-0.5)
    before = normalization == "before"
    return Kernel(filter, 1 / norm if before else None, None if before else 1 / norm)


def spatial_features(height: int, width: int, sigma: ArrayLike) -> Float[Array, "n 2"]:
    """(x, y) / sigma of the pixels of a grid, row by row."""
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([x, y], -1).reshape(-1, 2) / jnp.asarray(sigma)


def bilateral_features(
    image: Num[Array, "h w c"], sigma_xy: ArrayLike, sigma_rgb: ArrayLike
) -> Float[Array, "n d"]:
    """(x, y) / sigma_xy and colours / sigma_rgb, row by row; d = 2 + c."""
    height, width, channels = image.shape
    positions = spatial_features(height, width, sigma_xy)
    colours = image.reshape(-1, channels) / jnp.asarray(sigma_rgb)
    dtype = jnp.result_type(positions, colours)
    return jnp.concatenate([positions.astype(dtype), colours.astype(dtype)], 1)


def _scaled(values: Float[Array, "n k"], factors: Float[Array, "n"] | None):
    return values if factors is None else values * factors[:, None]


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
    """What the kernels of an image depend on besides; see `DenseCRF`."""

    spatial_sigma: float | int | Array
    bilateral_sigma_xy: float | int | Array
    bilateral_sigma_rgb: float | int | Array
    normalization: Normalization
    method: Method


def image_kernels(
    image: Num[Array | np.ndarray, "h w c"], settings: KernelSettings
) -> ImageKernels:
    """The kernels of an image.

    A concrete image is padded to multiples of `SIDE`, which the results do not see, and
    prepared by compiled functions; a traced one is taken as it is, and a lattice has
    room for the worst case.

    Args:
        image: colours 0..255.
        settings: bandwidths, normalisation and method.
    """
    if is_traced(image):
        features = _features(image, settings, _as_is)
        bilateral = build_filter(features, None, settings.method)
        return _normalized(bilateral, image.shape, None, settings, _as_is)
    height, width, _ = image.shape
    padding = [(0, -n % SIDE) for n in (height, width)]
    with jax.ensure_compile_time_eval():
        padded = jnp.asarray(np.pad(np.asarray(image), [*padding, (0, 0)]))
        valid = jnp.asarray(np.pad(np.ones((height, width), bool), padding).ravel())
        features = _features(padded, settings, compiled)
        bilateral = build_filter(features, valid, settings.method)
        kernels = _normalized(bilateral, padded.shape, valid, settings, compiled)
    return kernels.replace(size=(height, width))


def with_kernels(
    image: Num[Array | np.ndarray, "h w c"],
    settings: KernelSettings,
    use: Callable[[ImageKernels], T],
) -> T:
    """`use` of an image's kernels, for what has no other use for them.

    Traced, the lattice's size is then chosen while the program runs (`with_lattice`).

    Args:
        image: as for `image_kernels`.
        settings: likewise.
        use: may be traced several times.
    """
    if settings.method == "exact" or not is_traced(image):
        return use(image_kernels(image, settings))

    def use_lattice(lattice):
        return use(_normalized(lattice, image.shape, None, settings, _as_is))

    return with_lattice(_features(image, settings, _as_is), None, use_lattice)


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


def _features(image, settings: KernelSettings, jitted):
    """`jitted` is `compiled`, or `_as_is` where a trace is under way."""
    sigmas = settings.bilateral_sigma_xy, settings.bilateral_sigma_rgb
    return jitted(bilateral_features)(image, *sigmas)


def _normalized(bilateral, shape, valid, settings: KernelSettings, jitted):
    """The kernels of a (padded) image of `shape`, given its bilateral filter."""
    height, width, _ = shape
    grid = _spatial_filter(height, width, valid, settings)
    normal = jitted(normalize, "normalization", "points")
    options = dict(
        normalization=settings.normalization, points=height * width, valid=valid
    )
    return ImageKernels(
        spatial=normal(grid, **options),
        bilateral=normal(bilateral, **options),
        valid=valid,
        size=(height, width),
        padded=(height, width),
    )


def _spatial_filter(height, width, valid, settings: KernelSettings) -> Filter:
    """Along the axes, cut for `"auto"` and whole for `"exact"`; or by the lattice."""
    sigma, method = settings.spatial_sigma, settings.method
    if method == "lattice":
        return build_filter(spatial_features(height, width, sigma), valid, method)
    whole = method == "exact" or is_traced(sigma)
    radius = None if whole else cut_radius(float(sigma))
    return GridFilter(jnp.asarray(sigma, float), valid, height, width, radius)
