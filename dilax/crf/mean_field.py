"""Mean-field inference in a fully connected CRF (Krähenbühl & Koltun 2011, §2, §3).

P(x) = exp(−E(x)) / Z with E(x) = Σ_i U_i(x_i) + Σ_{i<j} Σ_m k_m(i, j) μ_m(x_i, x_j) is
approximated by marginals Q that minimize KL(Q‖P). All pixels are updated at once, by
Q_i ∝ exp(−U_i − Σ_m μ_m · message_m,i(Q)); a message is a Gaussian filter of the
marginals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from dilax.crf.kernels import Kernel


@struct.dataclass
class Pairwise:
    """One pairwise term: a kernel, and the energy of two pixels' labels.

    Attributes:
        kernel: how strongly two pixels are connected.
        compatibility: a number w is the Potts model, energy −w for equal labels (a
            constant away from +w for different ones); k numbers are the energies of
            equal labels, class by class, so Potts is −w of them; a (k, k) matrix μ is
            the energy μ(l, l') of a pixel's label l beside l'.
    """

    kernel: Kernel
    compatibility: Float[Array, "*shape"]

    def __call__(self, marginals: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return the expected energy of each label, each pixel's own share included."""
        return self.energy_of(self.kernel(marginals))

    def energy_of(self, message: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return Σ_l' μ(l, l') message(l')."""
        mu = jnp.asarray(self.compatibility, message.dtype)
        if mu.ndim == 2:
            return jnp.matmul(message, mu.T, precision=lax.Precision.HIGHEST)
        return message * (mu if mu.ndim == 1 else -mu)


def mean_field(
    logits: Float[Array, "n k"], terms: Sequence[Pairwise], iterations: int
) -> Float[Array, "n k"]:
    """Iterate the mean field from softmax(logits).

    The reverse pass stores the logits of every iteration and recomputes the rest.

    Args:
        logits: −U, up to a constant per pixel: logarithms of probabilities, or logits.
        terms: the pairwise terms.
        iterations: number of updates; 0 returns `logits`.

    Returns:
        Logits of the marginals.

    Example:
        >>> from dilax.crf.filters import ExactFilter
        >>> pixels = Kernel(ExactFilter(jnp.zeros((2, 1))))  # two at one place
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> out = mean_field(logits, [Pairwise(pixels, jnp.array(2.0))], 5)
        >>> (out[:, 0] > out[:, 1]).tolist()
        [True, True]

    Source: Krähenbühl & Koltun 2011, algorithm 1; the messages include a pixel's own,
    as in the authors' code.
    """

    @jax.checkpoint
    def update(current, _):
        return step(logits, terms, jax.nn.softmax(current)), None

    return lax.scan(update, logits, None, length=iterations)[0]


def step(
    logits: Float[Array, "n k"],
    terms: Sequence[Pairwise],
    marginals: Float[Array, "n k"],
) -> Float[Array, "n k"]:
    """Return the logits of the next marginals."""
    energies = sum(term(marginals) for term in terms)
    return (logits - energies).astype(logits.dtype)


class Energy(NamedTuple):
    """Parts of KL(Q‖P), sums over the pixels, scalars, or one per iteration.

    Attributes:
        unary: Σ_i E_Q[U_i].
        pairwise: E_Q of the pairs' energies, every pair once and no pixel with itself.
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
        """KL(Q‖P) − log Z, which falls; its lowest possible value is −log Z."""
        return self.unary + self.pairwise + self.negative_entropy


def energy(
    marginals: Float[Array, "n k"],
    logits: Float[Array, "n k"],
    terms: Sequence[Pairwise],
    valid: Bool[Array, "n"] | None = None,
) -> Energy:
    """Return the energy of marginals, as the paper defines it.

    The reference code's `klDivergence` differs: it counts every pair twice, and each
    pixel with itself.

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
        own = term.kernel.before * term.kernel.after  # where the filter is exact
        pairs += 0.5 * jnp.sum(q * term.energy_of(term.kernel(q) - own * q))
    entropy = jnp.sum(jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1)), 0))
    return Energy(-jnp.sum(q * logits), pairs, entropy)


def energies(
    logits: Float[Array, "n k"],
    terms: Sequence[Pairwise],
    iterations: int,
    valid: Bool[Array, "n"] | None = None,
) -> Energy:
    """Return the energy of the first marginals and of those after each iteration.

    Args:
        logits: as for `mean_field`.
        terms: the pairwise terms.
        iterations: number of updates.
        valid: as for `energy`.

    Returns:
        Parts of shape (iterations + 1,).
    """

    def update(current, _):
        marginals = jax.nn.softmax(current)
        now = energy(marginals, logits, terms, valid)
        return step(logits, terms, marginals), now

    return lax.scan(update, logits, None, length=iterations + 1)[1]
