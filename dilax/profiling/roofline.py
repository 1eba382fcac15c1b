"""The least time of some work: on one device (roofline), and on a mesh of devices.

Work of F operations and B bytes takes at least max(F / peak rate, B / bandwidth): the
roofline (Williams 2009).

On several devices, `plan` divides a step's arithmetic and adds what the mesh costs: the
rows that pad maps, the sum of the gradients over all devices (a ring: each sends and
receives 2·(n − 1)/n of the parameters), and the halos: for each convolution, the rows
that its taps reach beyond a device's share, once forward and, if gradients pass, once
backward.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from dilax.profiling.cost import LayerCost, NetworkCost, Work
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
        """Return the least time for this work.

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
    """A data sheet: TFLOP/s of dense products, and TB/s.

    float32 is the rate of the format that JAX uses for float32 convolutions by default:
    TF32 on these GPUs, one bfloat16 pass on TPUs.
    """

    device: str
    bfloat16: float
    float32: float
    bandwidth: float


# Matched with the beginning of JAX's `device_kind`; the first match counts.
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


_FLOAT = 4  # bytes of parameters, gradients and momentum


class Machine(NamedTuple):
    """Assumed rates of a device.

    Attributes:
        name: of the device.
        flops: operations per second that are reached in practice.
        inside: bytes per second to devices of the same host, each way.
        between: bytes per second to devices of other hosts.
        per_host: devices per host.
        memory: bytes of memory per device.
    """

    name: str
    flops: float
    inside: float
    between: float
    per_host: int
    memory: float


# Half of the stated bfloat16 rate; NVLink within eight, 400 Gb/s per device beyond.
H100 = Machine("H100 (half of 989 TFLOP/s)", 495e12, 450e9, 50e9, 8, 80e9)


class Plan(NamedTuple):
    """A training step on a mesh.

    Attributes:
        data: devices over which examples are spread.
        rows: devices over which each image's rows are spread.
        seconds: time of a step, computation and communication one after the other.
        memory: bytes on each device: parameters, gradients, momentum, kept maps.
        gradients: bytes that each device receives for the sum of the gradients.
        halos: bytes of neighbours' rows that each device receives.
        parts: number of parts into which each device's examples are divided
            (gradient accumulation) to fit into memory; 0 if a single one does not fit.
    """

    data: int
    rows: int
    seconds: float
    memory: float
    gradients: float
    halos: float
    parts: int


def plan(
    one: NetworkCost, batch: int, data: int, rows: int, machine: Machine = H100
) -> Plan:
    """Plan a training step of a batch on a mesh of `data` × `rows` devices.

    Args:
        one: cost of a single example in training.
        batch: number of examples.
        data: devices over which examples are spread; divides `batch`.
        rows: devices over which each image's rows are spread.
        machine: the devices.

    Raises:
        ValueError: if `data` does not divide the batch.
    """
    if batch % data:
        raise ValueError(f"data={data}: does not divide the batch of {batch}")
    own, devices = batch // data, data * rows
    parameters = sum(c.parameters for c in one.layers if c.kernel_gradient.flops)
    state = _FLOAT * (one.parameters + 2 * parameters)
    kept = one.kept / rows
    room = machine.memory - state
    divisors = (n for n in range(1, own + 1) if own % n == 0)
    parts = next((n for n in divisors if own // n * kept <= room), 0)
    flops = own * one.total.flops * _filled_rows(one, rows) / rows
    gradients = 2 * (devices - 1) / devices * _FLOAT * parameters
    halos = own * sum(halo_bytes(layer, rows) for layer in one.layers)
    slowest = machine.inside if devices <= machine.per_host else machine.between
    near = machine.inside if rows <= machine.per_host else machine.between
    seconds = flops / machine.flops + gradients / slowest + halos / near
    memory = state + kept * (own // parts if parts else 1)
    return Plan(data, rows, seconds, memory, gradients, halos, parts)


def best_plan(
    one: NetworkCost, batch: int, devices: int, machine: Machine = H100
) -> Plan | None:
    """Return the plan of the fastest mesh that fits into memory; None if none does."""
    meshes = [
        (data, devices // data)
        for data in range(1, min(batch, devices) + 1)
        if devices % data == 0 and batch % data == 0
    ]
    plans = [plan(one, batch, *mesh, machine) for mesh in meshes]
    fits = [p for p in plans if p.parts]
    return min(fits, key=lambda p: p.seconds, default=None)


def _filled_rows(cost: NetworkCost, rows: int) -> float:
    """Rows computed per row of the output maps that means something.

    The rows of the front end are padded once, to a multiple of pools and devices.
    """
    if rows == 1:
        return 1.0
    first = cost.layers[0].call.input.shape[1]
    whole, work = 0.0, 0.0
    for layer in cost.layers:
        height = filled = layer.call.output.shape[1]
        if layer.call.module == "front_end":
            filled = first / max(1, round(first / height))
        share = math.ceil(filled / rows) * rows
        whole += layer.total.flops * share / height
        work += layer.total.flops
    return whole / work


def halo_bytes(layer: LayerCost, rows: int) -> int:
    """Bytes of other devices' rows that one device receives for a layer of one image.

    Args:
        layer: of a network's cost for one example; forward and backward are counted.
        rows: devices over which the image's rows are spread.
    """
    call = layer.call
    if rows == 1 or not hasattr(call.layer, "kernel_size"):
        return 0
    _, height, width, channels = call.input.shape
    reach = call.dilation * (call.layer.kernel_size - 1)
    reach = min(reach, height * (rows - 1) // rows)
    once = reach * width * channels * np.dtype(call.input.dtype).itemsize
    return once * (2 if layer.input_gradient.flops else 1)


def scaling_rows(
    one: NetworkCost, batch: int, counts: Sequence[int], machine: Machine = H100
) -> list[list[str]]:
    """Tabulate the best plan for each number of devices.

    The columns are devices, mesh, step in ms, memory in GB, parts, gradients and halos
    in MB.
    """
    rows = []
    for count in counts:
        best = best_plan(one, batch, count, machine)
        if best is None:
            rows.append([str(count), "–", "does not fit", "", "", "", ""])
            continue
        rows.append(
            [
                str(count),
                f"{best.data} × {best.rows}",
                f"{1000 * best.seconds:.3g}",
                f"{best.memory / 1e9:.1f}",
                str(best.parts),
                f"{best.gradients / 1e6:.0f}",
                f"{best.halos / 1e6:.0f}",
            ]
        )
    return rows
