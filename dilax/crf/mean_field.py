"""Mean-field inference in a fully connected CRF, and CRF-RNN, which trains it.

P(x) = exp(−E(x)) / Z with E(x) = Σ_i U_i(x_i) + Σ_{i<j} Σ_m k_m(i, j) μ_m(x_i, x_j) is
approximated by marginals Q that minimize KL(Q‖P). All pixels are updated at once, by
Q_i ∝ exp(−U_i − Σ_m μ_m · message_m,i(Q)); a message is a Gaussian filter of the
marginals (Krähenbühl & Koltun 2011, §2, §3).

CRF-RNN is the third architecture of §5 of the paper: the mean field as a layer whose
weights are trained (Zheng et al. 2015, §4). It starts as a dense CRF.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Num

from dilax.crf.filters import Kernel, Method
from dilax.crf.kernels import (
    SIGMAS,
    ImageKernels,
    KernelSettings,
    check_iterations,
    check_number,
    image_kernels,
    on_pixels,
    over_batch,
    with_kernels,
)


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


def pairwise_terms(kernels: Sequence[Kernel], energies: Sequence) -> list[Pairwise]:
    """Return one term for each kernel and its energy of two labels."""
    pairs = zip(kernels, energies, strict=True)
    return [Pairwise(kernel, jnp.asarray(energy)) for kernel, energy in pairs]


def refined(
    logits: Float[Array, "h w k"],
    kernels: Sequence[Kernel],
    energies: Sequence,
    valid: Bool[Array, "n"] | None,
    steps: int,
) -> Float[Array, "h w k"]:
    """Return the logits of an image's marginals, see `mean_field` and `on_pixels`."""
    flat = logits.reshape(-1, logits.shape[-1])
    terms = pairwise_terms(kernels, energies)
    return mean_field(flat, terms, steps).reshape(logits.shape)


_INITIAL = {"spatial_weights": 3.0, "bilateral_weights": 5.0, "compatibility": -1.0}


class CRFRNN(nn.Module):
    """Unrolled mean field with class-wise kernel weights and a trained compatibility.

    Each step: softmax; both Gaussian filters, each divided by its filter of ones;
    class-wise weights W_s and W_b; compatibility μ; the logits minus that. So
    logits ← U − μ (W_s m_s + W_b m_b), with Potts (μ = −I) and weights 3 and 5 at
    first.

    Args of `__call__`: logits (b, h, w, k), unnormalized or logarithms of
    probabilities; image (b, h, w, c), colours 0..255 as integers or floats; `train`
    takes `train_steps`. Returns logits of the marginals (b, h, w, k), float32, or
    float64 for float64. An image's kernels are built once for all steps. No gradient
    reaches the image. Concrete images, outside of `jax.jit`, are taken one by one, and
    by the lattice in less memory and time than traced ones, whose lattice has room for
    the worst case.

    Attributes:
        num_classes: k.
        spatial_sigma: bandwidth of the spatial kernel in pixels (θ_γ).
        bilateral_sigma_xy: bandwidth of the bilateral kernel in pixels (θ_α).
        bilateral_sigma_rgb: its bandwidth in colour levels, 0..255 (θ_β).
        train_steps: steps in training.
        test_steps: steps in testing.
        method: of filtering, as of `DenseCRF`.

    Raises:
        ValueError: from `init` or `apply`, if logits and image do not fit each other or
            an attribute is not allowed.

    Example:
        >>> crf = CRFRNN(2, method="exact")
        >>> logits, image = jnp.zeros((1, 4, 5, 2)), jnp.zeros((1, 4, 5, 3))
        >>> params = crf.init(jax.random.key(0), logits, image)["params"]
        >>> params["compatibility"].tolist()
        [[-1.0, -0.0], [-0.0, -1.0]]
        >>> crf.apply({"params": params}, logits, image, train=True).shape
        (1, 4, 5, 2)

    Source: Zheng et al. 2015, §4, §5 and the initial values of their code.
    """

    num_classes: int
    spatial_sigma: float | int = 3.0
    bilateral_sigma_xy: float | int = 160.0
    bilateral_sigma_rgb: float | int = 3.0
    train_steps: int = 5
    test_steps: int = 10
    method: Method = "auto"

    @nn.compact
    def __call__(
        self,
        logits: Float[Array | np.ndarray, "b h w k"],
        image: Num[Array | np.ndarray, "b h w c"] | Sequence[ImageKernels],
        train: bool = False,
    ) -> Float[Array, "b h w k"]:
        """Logits of the marginals; see the class."""
        self._check(logits, image)
        spatial, bilateral, compatibility = (
            self.param(name, lambda key, scale=scale: scale * jnp.eye(self.num_classes))
            for name, scale in _INITIAL.items()
        )
        energies = [
            jnp.matmul(compatibility, weights, precision=lax.Precision.HIGHEST)
            for weights in (spatial, bilateral)
        ]
        steps = self.train_steps if train else self.test_steps

        def refine(logits, image):
            def use(kernels):
                height, width = kernels.size
                kernels = lax.stop_gradient(kernels)
                out = on_pixels(refined, logits, kernels, 0.0, energies, steps)
                return out[:height, :width]

            return with_kernels(lax.stop_gradient(image), self._settings, use)

        return over_batch(refine, logits, image)

    def prepare(self, image: Num[Array | np.ndarray, "h w c"]) -> ImageKernels:
        """Return what depends on an image alone, to use in place of the image.

        Args:
            image: one image, colours 0..255.
        """
        return image_kernels(image, self._settings)

    @property
    def _settings(self) -> KernelSettings:
        sigmas = self.spatial_sigma, self.bilateral_sigma_xy, self.bilateral_sigma_rgb
        return KernelSettings(*sigmas, normalization="after", method=self.method)

    def _check(self, logits, image) -> None:
        for name in SIGMAS:
            check_number(name, getattr(self, name), positive=True)
        for name in ("train_steps", "test_steps"):
            check_iterations(name, getattr(self, name))
        if isinstance(image, Sequence):
            images = [kernels.size for kernels in image]
        else:
            images = [image.shape[1:3]] * len(image)
        fits = images == [logits.shape[1:3]] * len(logits)
        if not fits or logits.shape[3] != self.num_classes:
            raise ValueError(
                f"logits of shape {logits.shape} for images of (height, width) "
                f"{images}: they are (b, h, w, {self.num_classes}), of the images' size"
            )
