"""The minimum time of some work on a device, by the roofline (Williams 2009).

Work of F operations and B bytes takes at least max(F / peak rate, B / bandwidth).
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dilax.profiling.cost import Work
from dilax.runtime import jit


class Peak(NamedTuple):
    """The peak rates of a device.

    Attributes:
        device: its name.
        flops: operations per second, in dense matrix products.
        bandwidth: bytes per second to and from its memory.
        measured: whether the rates were measured here, not taken from a data sheet.
    """

    device: str
    flops: float
    bandwidth: float
    measured: bool = False

    def seconds(self, work: Work) -> float:
        """Return the minimum time for this work.

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
    """A data sheet: TFLOP/s of dense products, TB/s, and GB of memory.

    float32 is the rate of the format that JAX uses for float32 convolutions by default:
    TF32 on these GPUs, one bfloat16 pass on TPUs.
    """

    device: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: float


# Matched with the beginning of JAX's `device_kind`; the first match counts.
_STATED = (
    _Stated("NVIDIA H200", 989.4, 494.7, 4.8, 141),
    _Stated("NVIDIA H100 PCIe", 756.0, 378.0, 2.0, 80),
    _Stated("NVIDIA H100", 989.4, 494.7, 3.35, 80),
    _Stated("NVIDIA A100-SXM4-80GB", 312.0, 156.0, 2.039, 80),
    _Stated("NVIDIA A100 80GB PCIe", 312.0, 156.0, 1.935, 80),
    _Stated("NVIDIA A100", 312.0, 156.0, 1.555, 40),
    _Stated("TPU v4", 275.0, 275.0, 1.228, 32),
    _Stated("TPU v5 lite", 197.0, 197.0, 0.819, 16),
    _Stated("TPU v5e", 197.0, 197.0, 0.819, 16),
    _Stated("TPU v5", 459.0, 459.0, 2.765, 95),  # v5p
    _Stated("TPU v6 lite", 918.0, 918.0, 1.64, 32),
)


def device_peak(dtype: DTypeLike = jnp.float32, device: str = "") -> Peak:
    """Return the peak of a known device, or measure that of the default device.

    Args:
        dtype: of the computation, `float32` or `bfloat16`.
        device: JAX's `device_kind`; `""` for the default device.

    Raises:
        ValueError: if the device is neither known nor the default device.

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


def device_memory(device: str = "") -> int:
    """Return the bytes of memory of a known device, or of the default device.

    Args:
        device: JAX's `device_kind`; `""` for the default device.

    Returns:
        What the device reports, or its data sheet; 0 for a CPU.
    """
    here = jax.devices()[0]
    if not device and here.platform != "cpu" and (stats := here.memory_stats()):
        return stats["bytes_limit"]
    kind = device or here.device_kind
    known = (row.memory for row in _STATED if kind.startswith(row.device))
    return int(next(known, 0) * 1e9)


def memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a program needs on each device, including arguments."""
    account: Any = compiled.memory_analysis()
    held = account.argument_size_in_bytes + account.output_size_in_bytes
    return held + account.temp_size_in_bytes - account.alias_size_in_bytes


@functools.cache
def measured_peak(dtype: str, side: int = 1536, megabytes: int = 256) -> Peak:
    """Measure the default device in a matrix product and in a copy.

    This takes some tenths of a second on a CPU, once per process.

    Args:
        dtype: of the product's factors; sums are float32.
        side: side of the square matrices.
        megabytes: size of the array that is copied; larger than the caches.
    """
    a = jnp.ones((side, side), dtype)
    product = jit(functools.partial(lax.dot, preferred_element_type=jnp.float32))
    flops = 2 * side**3 / _best_seconds(lambda out: product(a, a), a)
    add = jit(lambda x: x + 1, donate_argnums=0)  # in place: no new memory to map
    x = jnp.ones((megabytes, 250_000), jnp.float32)
    bandwidth = 2 * x.nbytes / _best_seconds(add, x)
    return Peak(jax.devices()[0].device_kind, flops, bandwidth, measured=True)


def _best_seconds(function: Callable, out: jax.Array, repeats: int = 5) -> float:
    """Time a function that is applied to its own last output."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = jax.block_until_ready(function(out))
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first compiles
