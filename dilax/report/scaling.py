"""What training takes on 1 to 256 devices, on paper: time, memory, bytes between them.

From the layers' costs and a machine's rates. A step's arithmetic is divided over the
devices; with it come the rows that fill maps up, the gradients' sum over all devices
(a ring: each sends and receives 2·(n − 1)/n of the parameters), and the halos: of each
convolution, the rows that its taps reach beyond a device's share, once forward and,
where a gradient passes, once back.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from dilax.models import LayerCost, NetworkCost

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
