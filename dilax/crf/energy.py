"""What mean field minimises: KL(Q‖P) of the marginals (Krähenbühl & Koltun 2011, §2.2).

P(x) = exp(−E(x)) / Z with E(x) = Σ_i U_i(x_i) + Σ_{i<j} Σ_m k_m(i, j) μ_m(x_i, x_j).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from dilax.crf.mean_field import Pairwise, step


class Energy(NamedTuple):
    """Parts of KL(Q‖P), sums over the pixels, each a number or one an iteration.

    Attributes:
        unary: Σ_i E_Q[U_i].
        pairwise: E_Q of the pairs' energies, every pair once, no pixel with itself.
        negative_entropy: Σ_i E_Q[log Q_i].

    Example:
        >>> Energy(jnp.array(3.0), jnp.array(1.0), jnp.array(-0.5)).kl.item()
        3.5
    """

    unary: Float[Array, "*t"]
    pairwise: Float[Array, "*t"]
    negative_entropy: Float[Array, "*t"]

    @property
    def kl(self) -> Float[Array, "*t"]:
        """KL(Q‖P) − log Z: what is to fall, whose lowest value is −log Z."""
        return self.unary + self.pairwise + self.negative_entropy


def energy(
    marginals: Float[Array, "n k"],
    logits: Float[Array, "n k"],
    terms: Sequence[Pairwise],
    valid: Bool[Array, "n"] | None = None,
) -> Energy:
    """The energy of marginals.

    The reference code's `klDivergence` counts every pair twice and each pixel with
    itself besides; no distribution belongs to that sum, and ours is the paper's.

    Args:
        marginals: Q.
        logits: −U.
        terms: the pairwise terms.
        valid: pixels that count; None means all.

    Returns:
        Its three parts, scalars.

    Source: Krähenbühl & Koltun 2011, §2.2 and equations 1-2.
    """
    q = marginals if valid is None else jnp.where(valid[:, None], marginals, 0)
    pairs = jnp.zeros((), q.dtype)
    for term in terms:
        own = jnp.reshape(jnp.asarray(term.kernel.own_weight(), q.dtype), (-1, 1))
        pairs += 0.5 * jnp.sum(q * term.energy_of(term.kernel(q) - own * q))
    entropy = jnp.sum(jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1)), 0))
    return Energy(-jnp.sum(q * logits), pairs, entropy)


def energies(
    logits: Float[Array, "n k"],
    terms: Sequence[Pairwise],
    iterations: int,
    valid: Bool[Array, "n"] | None = None,
) -> Energy:
    """The energy of the first marginals and of those after each iteration.

    Args:
        logits: as for `mean_field`.
        terms: the pairwise terms.
        iterations: how many updates.
        valid: as for `energy`.

    Returns:
        Parts of shape (iterations + 1,).
    """

    def update(current, _):
        marginals = jax.nn.softmax(current)
        now = energy(marginals, logits, terms, valid)
        return step(logits, terms, marginals), now

    return lax.scan(update, logits, None, length=iterations + 1)[1]
