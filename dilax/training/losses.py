"""Softmax cross-entropy over the valid pixels of a whole batch (paper §4; release)."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from dilax.datasets import DatasetSpec


def count_valid(labels: Integer[Array, "b h w"], ignore_label: int) -> Float[Array, ""]:
    """How many labels are not ignored, at least 1."""
    rows = (labels != ignore_label).sum(-1)
    return jnp.maximum(rows.sum(), 1).astype(jnp.float32)


def cross_entropy_sum(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    ignore_label: int,
    class_weights: Float[Array, " k"] | None = None,
) -> Float[Array, ""]:
    """Σ over valid pixels of w_y · (log Σ_c exp z_c − z_y).

    Divide by `count_valid` of the whole batch, once: a mean of the means of parts would
    weigh pixels by how many others their part has. Summed row by row first, since XLA's
    CPU backend loses digits in one sum over millions of terms.

    Args:
        logits: z, before the softmax.
        labels: y, train ids or `ignore_label`.
        ignore_label: pixels that add nothing, neither to the loss nor to its gradient.
        class_weights: w, one a class; None weighs all classes 1.

    Returns:
        The sum, float32.
    """
    valid = labels != ignore_label
    classes = jnp.where(valid, labels, 0).astype(jnp.int32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    if class_weights is not None:
        loss = loss * class_weights[classes]
    return jnp.where(valid, loss, 0.0).sum(-1).sum(-1).sum()


def class_weights(
    source, spec: DatasetSpec, power: float, limit: int = 1000
) -> Float[Array, " k"]:
    """Weights ∝ frequency^(−power) with mean 1 over the labelled pixels.

    Args:
        source: the training samples, of which up to `limit`, evenly spread, are read.
        spec: classes and ignore label.
        power: 0 weighs all classes 1, ½ by 1/√frequency, 1 by 1/frequency.
        limit: most samples to read.

    Returns:
        (k,) float32; classes that never occur get weight 1.
    """
    chosen = range(0, len(source), -(-len(source) // limit))
    counts = np.zeros(256, np.int64)
    for i in chosen:
        counts += np.bincount(source[i]["label"].ravel(), minlength=256)
    counts[spec.ignore_label] = 0
    frequency = counts[: spec.num_classes] / max(counts.sum(), 1)
    present = frequency > 0
    weights = np.where(present, np.where(present, frequency, 1) ** -power, 1.0)
    mean = np.where(present, weights * frequency, 0).sum()
    return jnp.asarray(weights / mean, jnp.float32)
