"""What training takes on 1 to 256 devices, on paper: time, memory, bytes between them.

From the layers' costs and a machine's rates. A step's arithmetic is divided over the
devices; with it come the rows that fill maps up, the gradients' sum over all devices
(a ring: each sends and receives 2·(n − 1)/n of the parameters), and the halos: of each
convolution, the rows that its taps reach beyond a device's share, once forward and,
where a gradient passes, once back.

The least time that a machine can take for some work: the roofline (Williams 2009).

Work of F operations and B bytes takes at least max(F / peak rate, B / bandwidth).
"""

import functools
import math
import re
import time
from collections import Counter
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


_FLOAT = 4  # bytes of parameters, gradients and momentum
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)


class Machine(NamedTuple):
    """Assumed rates of a device, in its own units a second.

    Attributes:
        name: of the device.
        flops: operations, as reached and not as stated.
        inside: bytes from and to devices of the same host, each way.
        between: bytes from and to devices of other hosts.
        per_host: devices of a host.
        memory: bytes of a device.
    """

    name: str
    flops: float
    inside: float
    between: float
    per_host: int
    memory: float


# Half of the stated bfloat16 rate; NVLink within eight, 400 Gb/s a device beyond.
H100 = Machine("H100 (half of 989 TFLOP/s)", 495e12, 450e9, 50e9, 8, 80e9)


class Plan(NamedTuple):
    """A step on a mesh.

    Attributes:
        data: devices over which examples are spread.
        rows: devices over which each image's rows are.
        seconds: of a step, arithmetic and talk one after the other.
        memory: bytes on each device: parameters, gradients, momentum, kept maps.
        gradients: bytes that each device receives for the gradients' sum.
        halos: bytes of neighbours' rows that each receives.
        parts: into which each device's examples are cut (accumulation), so that they
            fit; 0 if one alone does not.
    """

    data: int
    rows: int
    seconds: float
    memory: float
    gradients: float
    halos: float
    parts: int

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.data * self.rows


def plan(
    one: NetworkCost, batch: int, data: int, rows: int, machine: Machine = H100
) -> Plan:
    """A step of a batch on a mesh.

    Args:
        one: cost of a single example, trained.
        batch: examples.
        data: devices over which they are spread; divides them.
        rows: devices over which each one's rows are.
        machine: of the devices.

    Raises:
        ValueError: if `data` does not divide the batch.
    """
    if batch % data:
        raise ValueError(f"data={data}: does not divide the batch of {batch}")
    own, devices = batch // data, data * rows
    parameters = sum(c.parameters for c in one.layers if c.kernel_gradient.flops)
    state = _FLOAT * (one.parameters + 2 * parameters)
    kept = one.kept / rows
    parts = _parts(own, machine.memory - state, kept)
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
    """The fastest mesh that fits into memory; None if none does."""
    meshes = [
        (data, devices // data)
        for data in range(1, min(batch, devices) + 1)
        if devices % data == 0 and batch % data == 0
    ]
    plans = [plan(one, batch, *mesh, machine) for mesh in meshes]
    fits = [p for p in plans if p.parts]
    return min(fits, key=lambda p: p.seconds, default=None)


def _parts(own: int, room: float, kept: float) -> int:
    """The fewest parts of which one fits; 0 if a single example does not."""
    divisors = [n for n in range(1, own + 1) if own % n == 0]
    return next((n for n in divisors if own // n * kept <= room), 0)


def _filled_rows(cost: NetworkCost, rows: int) -> float:
    """Rows that are computed, for each one that means something: of the output maps.

    Those of the front end are filled up once, to what pools and devices divide.
    """
    if rows == 1:
        return 1.0
    first = cost.layers[0].call.input.shape[1]
    whole, work = 0.0, 0.0
    for layer in cost.layers:
        height = layer.call.output.shape[1]
        stride = (
            max(1, round(first / height)) if layer.call.module == "front_end" else 1
        )
        filled = first / stride if layer.call.module == "front_end" else height
        share = math.ceil(filled / rows) * rows
        whole += layer.total.flops * share / height
        work += layer.total.flops
    return whole / work


def halo_bytes(layer: LayerCost, rows: int) -> int:
    """Bytes of other devices' rows that one takes for a layer of one image, both ways.

    Args:
        layer: of a network of one example.
        rows: devices over which its rows are spread.
    """
    call = layer.call
    if rows == 1 or not hasattr(call.layer, "kernel_size"):
        return 0
    _, height, width, channels = call.input.shape
    reach = call.dilation * (call.layer.kernel_size - 1)
    reach = min(reach, height * (rows - 1) // rows)
    once = reach * width * channels * np.dtype(call.input.dtype).itemsize
    return once * (2 if layer.input_gradient.flops else 1)


def collective_bytes(compiled: jax.stages.Compiled) -> Counter[str]:
    """Bytes that each kind of collective of a compiled program gives, on a device."""
    found: Counter[str] = Counter()
    pattern = re.compile(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
    for line in (compiled.as_text() or "").splitlines():
        if match := pattern.search(line):
            found[match[2]] += sum(map(_bytes, re.findall(r"\w+\[[\d,]*\]", match[1])))
    return found


def _bytes(shape: str) -> int:
    """Of an array as XLA writes it.

    Example:
        >>> _bytes("f32[2,3]"), _bytes("bf16[4]"), _bytes("u8[]")
        (24, 8, 1)
    """
    kind, sizes = shape.rstrip("]").split("[")
    bits = int(re.sub(r"\D", "", kind) or 8)
    return bits // 8 * math.prod(int(n) for n in sizes.split(",") if n)


def scaling_rows(
    one: NetworkCost, batch: int, counts: Sequence[int], machine: Machine = H100
) -> list[list[str]]:
    """A row of a table for each number of devices that the batch keeps busy."""
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
