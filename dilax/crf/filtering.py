"""Gaussian filtering in d dimensions, by whichever filter (Krähenbühl & Koltun, §3).

Every filter is a pytree that is called on values (n, k) and gives (n, k); what depends
on the features alone is in it already.
"""

from typing import Literal, Protocol, get_args, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float

from dilax.crf.exact import ExactFilter
from dilax.crf.lattice import build_lattice

Method = Literal["auto", "lattice", "exact"]

_BLOCKS = {"cpu": (256, 1024)}
_LARGE_BLOCKS = (4096, 8192)


@runtime_checkable
class Filter(Protocol):
    """A linear map of values (n, k) → (n, k) that approximates a Gaussian kernel."""

    def __call__(self, values: Float[Array, "n k"]) -> Float[Array, "n k"]: ...


def gaussian_filter(
    values: Float[Array, "n k"], features: Float[Array, "n d"], method: Method = "auto"
) -> Float[Array, "n k"]:
    """Σ_j exp(−½‖f_i − f_j‖²) v_j for every point i, itself included.

    Args:
        values: what is summed, k numbers a point.
        features: each point's coordinates, divided by their bandwidths.
        method: `"exact"` takes N² steps and no more memory than N numbers; `"lattice"`
            is the permutohedral lattice, N steps and a few per cent off; `"auto"` takes
            the lattice.

    Returns:
        The sums.

    Raises:
        ValueError: if the method is unknown, or there are not as many values as
            features.

    Example:
        >>> import jax.numpy as jnp
        >>> positions = jnp.array([[0.0], [1.0]])
        >>> gaussian_filter(jnp.ones((2, 1)), positions, "exact").tolist()
        [[1.606...], [1.606...]]

    Source: Krähenbühl & Koltun 2011, §3; Adams, Baek & Davis 2010.
    """
    if len(values) != len(features):
        raise ValueError(
            f"{len(values)} values and {len(features)} features: each point has both"
        )
    return build_filter(features, None, method)(values)


def build_filter(
    features: Float[Array, "n d"],
    valid: Bool[Array, "n"] | None = None,
    method: Method = "auto",
) -> Filter:
    """The filter over `features`, to be called on any number of values.

    Args:
        features: as for `gaussian_filter`.
        valid: points that take part; the others give nothing. None means all.
        method: as for `gaussian_filter`.

    Example:
        >>> import jax.numpy as jnp
        >>> blur = build_filter(jnp.array([[0.0], [9.0]]), method="exact")
        >>> blur(jnp.array([[1.0], [0.0]])).round(3).tolist()
        [[1.0], [0.0]]
    """
    check_method(method)
    if method == "exact":
        rows, columns = _BLOCKS.get(jax.default_backend(), _LARGE_BLOCKS)
        return ExactFilter(features, valid, rows, columns)
    return build_lattice(features, valid)


def check_method(method: str) -> None:
    """Raises ValueError if there is no such method."""
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not among {get_args(Method)}")
