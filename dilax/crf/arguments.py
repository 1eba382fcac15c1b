"""What a dense CRF refuses, each with the reason and what to do about it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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


def check_image(image: Any) -> None:
    """ValueError unless it is (h, w, c) of uint8; traced images may be floats too."""
    allowed = image.dtype == np.uint8
    if isinstance(image, jax.core.Tracer):
        allowed = allowed or jnp.issubdtype(image.dtype, jnp.floating)
    if image.ndim != 3 or 0 in image.shape or not allowed:
        raise ValueError(
            f"image of shape {image.shape} and type {image.dtype} is not (h, w, c) "
            "uint8: colours are 0..255, which the colour bandwidth is in, too"
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
