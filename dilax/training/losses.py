"""Losses (paper §4): sums over pixels or images, divided once for a whole batch.

Softmax cross-entropy over the valid pixels, as in the paper, and losses that help with
rare classes: class weights, focal loss, hard pixels (OHEM), Lovász-softmax, Dice.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

Logits = Float[Array, "b h w k"]
Labels = Integer[Array, "b h w"]
Weights = Float[Array, " k"] | None


@dataclasses.dataclass
class LossConfig:
    """The loss of a stage.

    Attributes:
        name: `"cross_entropy"` (the paper), `"focal"`, `"ohem"` (hard pixels only),
            `"lovasz"` (Lovász-softmax), or `"dice"`; the last two are per image.
        gamma: of `"focal"`: how strongly pixels that are nearly certain are discounted.
        threshold: of `"ohem"`: a pixel is hard if its true class is less probable.
        min_kept: of `"ohem"`: share of an image's pixels that always count as hard.

    Example:
        >>> LossConfig("focal").gamma
        2.0
    """

    name: Literal["cross_entropy", "focal", "ohem", "lovasz", "dice"] = "cross_entropy"
    gamma: float = 2.0
    threshold: float = 0.7
    min_kept: float = 0.0625


class Summed(NamedTuple):
    """The loss of a part of a batch, before division.

    Attributes:
        total: the sum, float32.
        number: number of pixels, or images, in the sum; it has no gradient.
    """

    total: Float[Array, ""]
    number: Float[Array, ""]


def loss_sum(
    config: LossConfig,
    logits: Logits,
    labels: Labels,
    ignore_label: int,
    class_weights: Weights = None,
) -> Summed:
    """Return the configured loss of a part of a batch.

    Add the totals and the numbers of all parts, and divide once. (A mean of the parts'
    means would give more weight to a pixel whose part has few others.)

    Args:
        config: the loss.
        logits: z, before the softmax.
        labels: y, train ids or `ignore_label`.
        ignore_label: pixels with this label contribute neither loss nor gradient.
        class_weights: w, one per class; None weights all classes equally.

    Returns:
        Sums that are finite for finite logits, even if classes, or all labels, are
        missing.

    Raises:
        ValueError: if there is no loss of this name.

    Example:
        >>> one = jnp.zeros((1, 1, 2, 4)), jnp.array([[[3, 255]]])
        >>> loss = loss_sum(LossConfig("focal", gamma=2.0), *one, 255)
        >>> round(float(loss.total), 3), float(loss.number)  # (1 − ¼)² ln 4
        (0.78, 1.0)
    """
    valid = labels != ignore_label
    match config.name:
        case "cross_entropy" | "focal" | "ohem":
            # log Σ_c exp z_c − z_y (paper §4) by masked sums over the classes, not by
            # indices: TPUs would gather, scatter and sort.
            truth = labels[..., None] == jnp.arange(logits.shape[-1])
            logits = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
            rest = jnp.log(jnp.exp(logits).sum(-1))
            loss = entropy = rest - jnp.where(truth, logits, 0).sum(-1)
            if class_weights is not None:
                loss = loss * jnp.where(truth, class_weights, 0).sum(-1)
            loss, entropy = (jnp.where(valid, x, 0.0) for x in (loss, entropy))
            counted = valid
            if config.name == "focal":
                loss = focal_factors(entropy, config.gamma) * loss
            elif config.name == "ohem":
                counted = hard_pixels(entropy, valid, config.threshold, config.min_kept)
                loss = jnp.where(counted, loss, 0)
            return Summed(_sum(loss), counted.sum().astype(jnp.float32))
        case "lovasz" | "dice":
            b, *_, k = logits.shape
            valid = valid.reshape(b, -1, 1)
            probabilities = jax.nn.softmax(logits.reshape(b, -1, k))
            truth = jax.nn.one_hot(jnp.where(labels == ignore_label, k, labels), k)
            function = lovasz if config.name == "lovasz" else dice
            losses = function(
                jnp.where(valid, probabilities, 0), truth.reshape(b, -1, k), valid
            )
            # An image's loss is the mean over the classes that occur in it.
            present = truth.reshape(b, -1, k).sum(1) > 0
            shares = present * (1.0 if class_weights is None else class_weights)
            total = jnp.where(present, shares * losses, 0).sum(-1)
            means = total / jnp.maximum(shares.sum(-1), 1e-6)
            return Summed(means.sum(), present.any(-1).sum().astype(jnp.float32))
    raise ValueError(
        f"loss.name={config.name!r}: must be cross_entropy, focal, ohem, lovasz or dice"
    )


def focal_factors(
    entropy: Float[Array, "b h w"], gamma: float
) -> Float[Array, "b h w"]:
    """Return (1 − p_y)^γ, by which focal loss multiplies cross-entropy −log p_y.

    γ = 0 is cross-entropy. The gradient is finite even where p_y = 1.

    Source: Lin et al. 2017, Eq. 4 and 5.
    """
    # 1 − p = −expm1(log p), kept above 0: x^γ has no gradient there for γ < 1.
    doubt = jnp.maximum(-jnp.expm1(-entropy), jnp.finfo(jnp.float32).tiny)
    return doubt**gamma


def hard_pixels(
    entropy: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    threshold: float,
    min_kept: float,
) -> Bool[Array, "b h w"]:
    """Return the hard pixels, the only ones that count (OHEM).

    In each image, pixels with p_y < threshold are hard, and so is the share `min_kept`
    of its valid pixels with the smallest p_y (including ties). Each image is treated
    separately, so that parts of a batch and devices need not exchange pixels.

    Source: Shrivastava et al. 2016; Wu et al. 2016, §3.2, for segmentation.
    """
    true_class = jnp.where(valid, jnp.exp(-entropy), jnp.inf).reshape(len(valid), -1)
    numbers = valid.reshape(true_class.shape).sum(-1)
    last = jnp.maximum(jnp.ceil(min_kept * numbers).astype(jnp.int32) - 1, 0)
    share = jnp.take_along_axis(jnp.sort(true_class, -1), last[:, None], -1)
    hard = (true_class < threshold) | ((true_class <= share) & (min_kept > 0))
    return jax.lax.stop_gradient(hard.reshape(valid.shape) & valid)


def lovasz(
    probabilities: Float[Array, "b n k"],
    truth: Float[Array, "b n k"],
    valid: Bool[Array, "b n 1"],
) -> Float[Array, "b k"]:
    """Return the Lovász-softmax of each image and class.

    With the errors e_i = |[y_i = c] − p_i(c)| in descending order, it is Σ_i e_i g_i,
    where g_i is the growth of the Jaccard loss 1 − |∩|/|∪| when the i-th pixel becomes
    wrong as well: the convex extension of that loss. The Jaccard index of a batch is
    not a sum over its parts, so the loss is computed per image.

    Source: Berman et al. 2018, Eq. 8 and 9, Algorithm 1.
    """
    errors = jnp.where(valid, jnp.abs(truth - probabilities), 0)
    order = jnp.argsort(-jax.lax.stop_gradient(errors), axis=1)
    # Jaccard loss when the first i pixels in that order are wrong, and its increments.
    size, true = truth.sum(1, keepdims=True), jnp.take_along_axis(truth, order, 1)
    intersection = size - jnp.cumsum(true, 1)
    union = size + jnp.cumsum(1 - true, 1)
    growth = jnp.diff(1 - intersection / union, axis=1, prepend=0)
    growth = jnp.take_along_axis(growth, jnp.argsort(order, 1), 1)
    return (errors * jax.lax.stop_gradient(growth)).sum(1)


def dice(
    probabilities: Float[Array, "b n k"],
    truth: Float[Array, "b n k"],
    valid: Bool[Array, "b n 1"],
) -> Float[Array, "b k"]:
    """Return the Dice loss of each image and class.

    It is 1 − 2 Σ_i p_i [y_i = c] / (Σ_i p_i + Σ_i [y_i = c]).

    Source: Sudre et al. 2017; Milletari et al. 2016, Eq. 1, with plain sums below.
    """
    both = (probabilities * truth).sum(1)
    sizes = probabilities.sum(1) + truth.sum(1)
    return 1 - 2 * both / jnp.maximum(sizes, 1e-6)


def _sum(x: Array) -> Float[Array, ""]:
    """Sum row by row, then the rows.

    XLA's CPU backend loses digits in a single sum over millions of terms.
    """
    return x.sum(-1, dtype=jnp.float32).sum(-1).sum()
