"""What a stage minimises: sums over pixels or images, divided once for a whole batch.

Softmax cross-entropy over the valid pixels (paper §4; release), and what people use
besides where classes are rare: weights, focal loss, hard pixels, Lovász-softmax, Dice.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer


@dataclasses.dataclass
class LossConfig:
    """What a stage minimises.

    Attributes:
        name: `"cross_entropy"` (the paper), `"focal"`, `"ohem"` (hard pixels alone),
            `"lovasz"` (Lovász-softmax) or `"dice"`; the last two are of each image.
        gamma: of `"focal"`: how much less a pixel counts that is nearly certain.
        threshold: of `"ohem"`: probabilities of the true class below it are hard.
        min_kept: of `"ohem"`: share of an image's pixels that always counts as hard.

    Example:
        >>> LossConfig("focal").gamma
        2.0
    """

    name: Literal["cross_entropy", "focal", "ohem", "lovasz", "dice"] = "cross_entropy"
    gamma: float = 2.0
    threshold: float = 0.7
    min_kept: float = 0.0625


class Summed(NamedTuple):
    """A loss of a part of a batch, before it is divided.

    Attributes:
        total: the sum, float32.
        number: of the pixels, or images, that it was summed over; no gradient.
    """

    total: Float[Array, ""]
    number: Float[Array, ""]


def loss_sum(
    config: LossConfig,
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    ignore_label: int,
    class_weights: Float[Array, " k"] | None = None,
) -> Summed:
    """The configured loss of a part of a batch.

    Add the totals and the counts of all parts, and divide once: a mean of the means of
    parts would weigh pixels by how many others their part has.

    Args:
        config: which loss.
        logits: z, before the softmax.
        labels: y, train ids or `ignore_label`.
        ignore_label: pixels that add nothing, neither to the loss nor to its gradient.
        class_weights: w, one a class; None weighs all classes 1.

    Returns:
        Finite for finite logits, also where classes or all labels are absent.

    Raises:
        ValueError: if there is no loss of this name.

    Example:
        >>> one = jnp.zeros((1, 1, 2, 4)), jnp.array([[[3, 255]]])
        >>> loss = loss_sum(LossConfig("focal", gamma=2.0), *one, 255)
        >>> round(float(loss.total), 3), float(loss.number)  # (1 − ¼)² ln 4
        (0.78, 1.0)
    """
    given = logits, labels, ignore_label, class_weights
    match config.name:
        case "cross_entropy":
            return Summed(cross_entropy_sum(*given), count_valid(labels, ignore_label))
        case "focal":
            return focal_sum(*given, gamma=config.gamma)
        case "ohem":
            return hard_pixel_sum(
                *given, threshold=config.threshold, min_kept=config.min_kept
            )
        case "lovasz":
            return lovasz_sum(*given)
        case "dice":
            return dice_sum(*given)
    raise ValueError(
        f"loss.name={config.name!r}: must be cross_entropy, focal, ohem, lovasz or dice"
    )


def count_valid(labels: Integer[Array, "b h w"], ignore_label: int) -> Float[Array, ""]:
    """How many labels are not ignored."""
    return (labels != ignore_label).sum(-1).sum().astype(jnp.float32)


def cross_entropy_sum(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    ignore_label: int,
    class_weights: Float[Array, " k"] | None = None,
) -> Float[Array, ""]:
    """Σ over valid pixels of w_y · (log Σ_c exp z_c − z_y). Args as `loss_sum`.

    Summed row by row first, since XLA's CPU backend loses digits in one sum over
    millions of terms.

    Source: paper §4; the released networks.
    """
    return _by_rows(_weighted_entropy(logits, labels, ignore_label, class_weights))


def focal_sum(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    ignore_label: int,
    class_weights: Float[Array, " k"] | None = None,
    *,
    gamma: float,
) -> Summed:
    """Σ over valid pixels of −w_y (1 − p_y)^γ log p_y, counting the valid pixels.

    Args as `loss_sum`; γ = 0 is cross-entropy. Its gradient stays finite where a pixel
    is certain, p_y = 1.

    Source: Lin et al. 2017, Eq. 4 and 5.
    """
    classes = jnp.where(labels == ignore_label, 0, labels).astype(jnp.int32)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    # 1 − p = −expm1(log p), kept above 0: x^γ has no gradient there for γ < 1.
    doubt = jnp.maximum(-jnp.expm1(-plain), jnp.finfo(jnp.float32).tiny)
    loss = _weighted_entropy(logits, labels, ignore_label, class_weights)
    return Summed(_by_rows(doubt**gamma * loss), count_valid(labels, ignore_label))


def hard_pixel_sum(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    ignore_label: int,
    class_weights: Float[Array, " k"] | None = None,
    *,
    threshold: float,
    min_kept: float,
) -> Summed:
    """Weighted cross-entropy of the hard pixels alone, counting those (OHEM).

    Hard are, in each image by itself, pixels with p_y < threshold, and the `min_kept`
    share of its valid pixels with the smallest p_y in any case. What is hard is decided
    image by image, not over a batch, so that parts and devices need not know each
    other's pixels.

    Args as `loss_sum`; p_y ties with the last pixel of the share count as well.

    Source: Shrivastava et al. 2016; Wu et al. 2016, §3.2, for segmentation.
    """
    valid = labels != ignore_label
    plain = _weighted_entropy(logits, labels, ignore_label, None)
    sure = jnp.where(valid, jnp.exp(-plain), jnp.inf).reshape(len(labels), -1)
    numbers = valid.reshape(sure.shape).sum(-1)
    last = jnp.maximum(jnp.ceil(min_kept * numbers).astype(jnp.int32) - 1, 0)
    share = jnp.take_along_axis(jnp.sort(sure, -1), last[:, None], -1)
    hard = (sure < threshold) | ((sure <= share) & (min_kept > 0))
    hard = jax.lax.stop_gradient(hard.reshape(valid.shape) & valid)
    loss = _weighted_entropy(logits, labels, ignore_label, class_weights)
    return Summed(_by_rows(jnp.where(hard, loss, 0)), _by_rows(hard))


def lovasz_sum(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    ignore_label: int,
    class_weights: Float[Array, " k"] | None = None,
) -> Summed:
    """Lovász-softmax of each image, summed, counting images that have valid pixels.

    For class c with errors e_i = |[y_i = c] − p_i(c)|, sorted to fall, Σ_i e_i g_i,
    where g_i is by how much the Jaccard loss 1 − |∩|/|∪| grows when the i-th pixel is
    wrong too: the convex extension of that loss. An image's loss is the mean (by
    `class_weights`) over the classes that are in it. The Jaccard index of a batch is no
    sum over its parts: it is that of each image here.

    Args as `loss_sum`.

    Source: Berman et al. 2018, Eq. 8 and 9, Algorithm 1.
    """
    odds, truth = _flat(logits, labels, ignore_label)
    valid = (labels != ignore_label).reshape(len(labels), -1, 1)
    errors = jnp.where(valid, jnp.abs(truth - odds), 0)
    order = jnp.argsort(-jax.lax.stop_gradient(errors), axis=1)
    slopes = _jaccard_slopes(jnp.take_along_axis(truth, order, 1))
    slopes = jnp.take_along_axis(slopes, jnp.argsort(order, 1), 1)
    losses = (errors * jax.lax.stop_gradient(slopes)).sum(1)
    return _over_present(losses, truth.sum(1) > 0, class_weights)


def dice_sum(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    ignore_label: int,
    class_weights: Float[Array, " k"] | None = None,
) -> Summed:
    """1 − Dice of each image, summed, counting images that have valid pixels.

    For class c, 1 − 2 Σ_i p_i [y_i = c] / (Σ_i p_i + Σ_i [y_i = c]); an image's loss is
    the mean (by `class_weights`) over the classes that are in it. The Dice of a batch
    is no sum over its parts: it is that of each image here.

    Args as `loss_sum`.

    Source: Sudre et al. 2017; Milletari et al. 2016, Eq. 1, with plain sums below.
    """
    odds, truth = _flat(logits, labels, ignore_label)
    sizes = truth.sum(1)
    both = (odds * truth).sum(1)
    losses = 1 - 2 * both / jnp.maximum(odds.sum(1) + sizes, 1e-6)
    return _over_present(losses, sizes > 0, class_weights)


def _weighted_entropy(logits, labels, ignore_label: int, weights) -> jax.Array:
    """(b, h, w): of each pixel, 0 where it is ignored."""
    valid = labels != ignore_label
    classes = jnp.where(valid, labels, 0).astype(jnp.int32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    if weights is not None:
        loss = loss * weights[classes]
    return jnp.where(valid, loss, 0.0)


def _by_rows(x: jax.Array) -> jax.Array:
    return x.sum(-1, dtype=jnp.float32).sum(-1).sum()


def _flat(logits, labels, ignore_label: int) -> tuple[jax.Array, jax.Array]:
    """(b, h·w, k) probabilities and truth, both 0 where a pixel is ignored."""
    b, *_, k = logits.shape
    valid = (labels != ignore_label).reshape(b, -1, 1)
    odds = jax.nn.softmax(logits.reshape(b, -1, k))
    truth = jax.nn.one_hot(jnp.where(labels == ignore_label, k, labels), k)
    return jnp.where(valid, odds, 0), truth.reshape(b, -1, k)


def _jaccard_slopes(truth: Float[Array, "b n k"]) -> Float[Array, "b n k"]:
    """g: what each further wrong pixel adds to the Jaccard loss, in the order given."""
    size = truth.sum(1, keepdims=True)
    missed = jnp.cumsum(truth, 1)
    union = size + jnp.cumsum(1 - truth, 1)
    loss = 1 - (size - missed) / union
    return jnp.diff(loss, axis=1, prepend=0)


def _over_present(
    losses: Float[Array, "b k"], present: Bool[Array, "b k"], weights
) -> Summed:
    """Mean over the classes of each image, summed over the images that have any."""
    shares = present * (1.0 if weights is None else weights)
    total = jnp.where(present, shares * losses, 0).sum(-1)
    means = total / jnp.maximum(shares.sum(-1), 1e-6)
    return Summed(means.sum(), present.any(-1).sum().astype(jnp.float32))
