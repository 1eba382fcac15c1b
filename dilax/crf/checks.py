"""Checks of the arguments of a dense CRF and a CRF-RNN, with reasons and remedies."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax.crf.kernels import ImageKernels, is_traced
from dilax.data.pixels import as_numbers

_ROUNDING = 0.02  # of 16-bit probabilities, in the sum over the classes
SUM_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a pixel may add up."""


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


def checked_compatibility(value: Any) -> tuple | None:
    """Return nested tuples of floats, which can be hashed."""
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
    """Return a list, a PIL image or a tensor as a NumPy array; arrays as they are.

    Integers of 0..255 in lists become uint8. Probabilities of 16 bits become float32
    and are divided by their sum, which rounding has changed.

    Raises:
        ValueError: naming the argument, if it is not an array.
    """
    if isinstance(value, jax.core.Tracer | ImageKernels):
        return value
    if not isinstance(value, jax.Array | np.ndarray):
        if hasattr(value, "convert"):
            value = value.convert("RGB")
        value = as_numbers(name, value)
        if value.dtype.kind not in "fiub" and value.dtype != jnp.bfloat16:
            raise ValueError(f"{name} is not an array of numbers, all of one size")
    if value.dtype in (jnp.bfloat16, jnp.float16):
        value = jnp.asarray(value, jnp.float32)
        sums = value.sum(-1, keepdims=True)
        if value.size and jnp.abs(sums - 1).max() < _ROUNDING:
            value = value / sums
    return value


def check_layout(shape: tuple[int, ...], image: tuple[int, ...]) -> None:
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


def check_image(image: Any) -> None:
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


def check_probabilities(
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
