"""The least time that a machine can take for some work: the roofline (Williams 2009).

Work of F operations and B bytes takes at least max(F / peak rate, B / bandwidth).
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dilax.models import Work
from dilax.ops import jit


class Peak(NamedTuple):
    """What a device can do at most.

    Attributes:
        device: its name.
        flops: operations a second, in matrix products, without sparsity.
        bandwidth: bytes a second from and to its memory.
        measured: whether it was measured here, and not stated by its maker.
    """

    device: str
    flops: float
    bandwidth: float
    measured: bool = False

    def seconds(self, work: Work) -> float:
        """The least time for this work.

        Example:
            >>> Peak("a chip", flops=4e12, bandwidth=1e12).seconds(Work(8, 1)) * 1e12
            2.0
        """
        return max(work.flops / self.flops, work.bytes / self.bandwidth)

    def __str__(self) -> str:
        origin = (
            "measured in a matrix product and a copy" if self.measured else "stated"
        )
        return (
            f"{self.device}: {self.flops / 1e9:,.0f} GFLOP/s, "
            f"{self.bandwidth / 1e9:,.0f} GB/s ({origin})"
        )


class _Stated(NamedTuple):
    """Of a maker's data sheet: TFLOP/s of dense products, and TB/s.

    float32 is the rate of what JAX computes float32 convolutions in by default: TF32
    on these GPUs, one bfloat16 pass on TPUs.
    """

    device: str
    bfloat16: float
    float32: float
    bandwidth: float


# By the beginning of JAX's `device_kind`; the first that fits.
_STATED = (
    _Stated("NVIDIA H200", 989.4, 494.7, 4.8),
    _Stated("NVIDIA H100 PCIe", 756.0, 378.0, 2.0),
    _Stated("NVIDIA H100", 989.4, 494.7, 3.35),
    _Stated("NVIDIA A100-SXM4-80GB", 312.0, 156.0, 2.039),
    _Stated("NVIDIA A100 80GB PCIe", 312.0, 156.0, 1.935),
    _Stated("NVIDIA A100", 312.0, 156.0, 1.555),
    _Stated("TPU v4", 275.0, 275.0, 1.228),
    _Stated("TPU v5 lite", 197.0, 197.0, 0.819),
    _Stated("TPU v5e", 197.0, 197.0, 0.819),
    _Stated("TPU v5", 459.0, 459.0, 2.765),  # v5p
)


def device_peak(dtype: DTypeLike = jnp.float32, device: str = "") -> Peak:
    """The peak of a device that is known, or that of this one as measured now.

    Args:
        dtype: of the computation, `float32` or `bfloat16`.
        device: as JAX names its kind; `""` is the default device.

    Raises:
        ValueError: for a device that is neither known nor here.

    Example:
        >>> device_peak(jnp.bfloat16, "NVIDIA H200")
        Peak(device='NVIDIA H200', flops=989400000000000.0, bandwidth=4800000000000.0,
             measured=False)

    Source: the makers' data sheets; `measured_peak`.
    """
    here = jax.devices()[0].device_kind
    kind = device or here
    half = jnp.dtype(dtype) == jnp.bfloat16
    for row in _STATED:
        if kind.startswith(row.device):
            rate = row.bfloat16 if half else row.float32
            return Peak(kind, rate * 1e12, row.bandwidth * 1e12)
    if kind != here:
        names = ", ".join(row.device for row in _STATED)
        raise ValueError(f"device={device!r}: is not this one, and none of {names}")
    return measured_peak("bfloat16" if half else "float32")


@functools.cache
def measured_peak(dtype: str, side: int = 1536, megabytes: int = 256) -> Peak:
    """What the default device does in a matrix product and in a copy.

    Takes some tenths of a second on a CPU, once a process.

    Args:
        dtype: of the product's factors; sums are float32.
        side: of the square matrices.
        megabytes: of the array that is copied: more than the caches hold.
    """
    a = jnp.ones((side, side), dtype)
    product = jit(functools.partial(lax.dot, preferred_element_type=jnp.float32))
    flops = 2 * side**3 / _best_seconds(lambda out: product(a, a), a)
    add = jit(lambda x: x + 1, donate_argnums=0)  # in place: no new memory to map
    x = jnp.ones((megabytes, 250_000), jnp.float32)
    bandwidth = 2 * x.nbytes / _best_seconds(add, x)
    return Peak(jax.devices()[0].device_kind, flops, bandwidth, measured=True)


def _best_seconds(function: Callable, out: jax.Array, repeats: int = 5) -> float:
    """Of a function of its own last output."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = jax.block_until_ready(function(out))
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first compiles
