"""How much each class counts in the loss, from how often it occurs in training."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dilax.datasets import DatasetSpec
from dilax.training.config import Config, StageConfig

Balance = Literal["", "inverse", "median"]


def class_weights(
    source,
    spec: DatasetSpec,
    power: float = 1.0,
    balance: Balance = "inverse",
    limit: int = 1000,
) -> Float[Array, " k"]:
    """Weights that fall as classes are more frequent.

    * `"inverse"`: ∝ frequency^(−power), with mean 1 over the labelled pixels.
    * `"median"`: (median / frequency)^power, where a class's frequency is its share of
      the labelled pixels of the images that it occurs in, and the median is over the
      classes (Eigen & Fergus 2015, §4.3.2; SegNet).

    Args:
        source: the training samples, of which up to `limit`, evenly spread, are read.
        spec: classes and ignore label.
        power: 0 weighs all classes 1, ½ by 1/√frequency, 1 by 1/frequency.
        balance: see above.
        limit: most samples to read.

    Returns:
        (k,) float32; classes that never occur get the weight of an ordinary one, 1 (or
        that of the mean pixel).

    Raises:
        ValueError: if there is no balance of this name.

    Example:
        >>> spec = DatasetSpec("s", ("a", "b"), ((0, 0, 0),) * 2, (0.0,))
        >>> source = [{"label": np.array([[0, 1]])}, {"label": np.array([[0, 0]])}]
        >>> class_weights(source, spec, 1.0, "median").tolist()  # of ¾ and ½
        [0.833..., 1.25]
        >>> class_weights(source, spec).tolist()
        [0.666..., 2.0]
    """
    counts, shared = _counts(source, spec, limit)
    present = counts > 0
    if balance == "median":
        frequency = counts / np.maximum(shared, 1)
        usual = np.median(frequency[present]) if present.any() else 1.0
        weights = np.where(present, frequency / usual, 1.0) ** -power
    elif balance == "inverse":
        frequency = counts / max(counts.sum(), 1)
        weights = np.where(present, frequency, 1.0) ** -power
        weights = weights / (np.where(present, weights * frequency, 0).sum() or 1)
    else:
        raise ValueError(f"balance={balance!r}: must be 'inverse' or 'median'")
    return jnp.asarray(weights, jnp.float32)


def stage_weights(
    config: Config, stage: StageConfig, source, spec: DatasetSpec
) -> Float[Array, " k"] | None:
    """The class weights of a stage's loss: its own, or those of the data; or None."""
    if stage.loss.balance:
        return class_weights(source, spec, balance=stage.loss.balance)
    power = config.data.class_weight_power
    return class_weights(source, spec, power) if power else None


def _counts(source, spec: DatasetSpec, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(k,) pixels of each class, and labelled pixels of the images that have it."""
    counts, shared = np.zeros((2, spec.num_classes), np.int64)
    for i in range(0, len(source), -(-len(source) // limit)):
        own = np.bincount(source[i]["label"].ravel(), minlength=256)
        own[spec.ignore_label] = 0
        own = own[: spec.num_classes]
        counts += own
        shared += np.where(own > 0, own.sum(), 0)
    return counts, shared
