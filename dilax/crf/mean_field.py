"""Mean-field inference in a fully connected CRF (Krähenbühl & Koltun 2011, §2, §3).

The marginals Q_i ∝ exp(−U_i − Σ_m μ_m · message_m,i(Q)) are iterated, all pixels at
once; a message is a Gaussian filter of the marginals.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from dilax.crf.kernels import Kernel


@struct.dataclass
class Pairwise:
    """One pairwise term: a kernel and what it costs two pixels to bear two labels.

    Attributes:
        kernel: how much two pixels have to do with each other.
        compatibility: a number w is the Potts model, energy −w for equal labels (a
            constant away from +w for different ones); k numbers are the energies of
            equal labels, class by class, so Potts is −w of them; a (k, k) matrix μ is
            the energy μ(l, l') of a pixel's label l beside l'.
    """

    kernel: Kernel
    compatibility: Float[Array, "*shape"]

    def __call__(self, marginals: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """The expected energy of each label at each pixel, its own share included."""
        return self.energy_of(self.kernel(marginals))

    def energy_of(self, message: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Σ_l' μ(l, l') message(l')."""
        return compatible(self.compatibility, message)


def compatible(compatibility: ArrayLike, message: Float[Array, "n k"]):
    """Energies of the labels from a message, by one of the three compatibilities."""
    mu = jnp.asarray(compatibility, message.dtype)
    if mu.ndim == 2:
        return jnp.matmul(message, mu.T, precision=lax.Precision.HIGHEST)
    return message * (mu if mu.ndim == 1 else -mu)


def mean_field(
    logits: Float[Array, "n k"], terms: Sequence[Pairwise], iterations: int
) -> Float[Array, "n k"]:
    """Iterates the mean field from softmax(logits).

    The reverse pass keeps the logits of every iteration and works out the rest again.

    Args:
        logits: −U, up to a constant a pixel: logarithms of probabilities, or logits.
        terms: the pairwise terms.
        iterations: how many updates; none returns `logits`.

    Returns:
        Logits of the marginals.

    Example:
        >>> from dilax.crf.exact import ExactFilter
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
    """One update: logits of the next marginals."""
    energies = sum(term(marginals) for term in terms)
    return (logits - energies).astype(logits.dtype)
