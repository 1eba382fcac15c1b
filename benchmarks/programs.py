"""The cost of a compiled program: memory, operations, convolutions, communication.

It is read from XLA's analyses and the text of the optimized program, on every backend,
including devices that only the compiler knows (`jax.experimental.topologies`).
"""

import math
import re
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax

from dilax.profiling.roofline import memory_bytes

_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")  # f32[2,3]
_CUDNN = re.compile(r'target="__cudnn\$conv(?:BiasActivation)?(\w+)"')
_CONTRACTED = re.compile(r"lhs_contracting_dim\w*\W+([\d,\"]+)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?$"
)


class Collective(NamedTuple):
    """An exchange between devices.

    Attributes:
        kind: such as `"all-reduce"` or `"collective-permute"`.
        dtype: of the array that each device receives, or of the largest one.
        bytes: bytes of the result on each device.
    """

    kind: str
    dtype: str
    bytes: int


class Program(NamedTuple):
    """The cost of a program on each of its devices.

    Attributes:
        memory: bytes of arguments, results, and temporary arrays.
        flops: operations, as XLA counts them; of one iteration, if the program loops.
            For GPUs, only those of convolutions and matrix products.
        cycles: sum of the compiler's estimates for single operations, on TPUs; else 0.
        collectives: each exchange, once.
        convolutions: kind, such as `"3x3 rhs_dilate=2x2"` → number of occurrences.
        shares: cycles by kind of operation.
    """

    memory: int
    flops: float
    cycles: int
    collectives: tuple[Collective, ...]
    convolutions: Counter[str]
    shares: Counter[str]

    def received(self, kind: str = "") -> int:
        """Return the bytes of the collectives of a kind, or of all."""
        return sum(c.bytes for c in self.collectives if kind in ("", c.kind))


def read_program(compiled: jax.stages.Compiled) -> Program:
    """Read the cost of a program from its text and the compiler's analyses.

    Example:
        >>> import jax.numpy as jnp
        >>> a = jnp.ones((4, 4))
        >>> read_program(jax.jit(jnp.dot).lower(a, a).compile()).flops
        128.0
    """
    types: dict[str, str] = {}
    cycles: dict[str, Counter[str]] = defaultdict(Counter)
    loops: dict[str, list[tuple[str, str]]] = defaultdict(list)
    limits: dict[str, int] = {}  # the constants of the loops' conditions
    convolves: set[str] = set()
    collectives: dict[tuple, Collective] = {}
    convolutions = Counter[str]()
    products, here, entry = 0, "", ""  # operations, computations
    for line in (compiled.as_text() or "").splitlines():
        if head := _HEAD.match(line):
            here = head[2]
            entry = here if head[1] else entry
        if not (found := _LINE.match(line)):
            continue
        name, kind, operation, rest = found.groups()
        types[name] = kind
        products += _products(types, kind, rest)
        cudnn = _CUDNN.search(rest)
        if operation == "convolution" or cudnn:
            convolves.add(here)
            window = re.search(r"window=\{(?:size=)?([^}]*)", rest)
            label = f"{cudnn[1] if cudnn else ''} {window[1] if window else '1x1'}"
            convolutions[label.strip()] += 1
        elif operation == "constant" and (number := re.match(r"(\d+)\)", rest)):
            limits[here] = max(limits.get(here, 1), int(number[1]))
        elif operation == "while":
            pair = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", rest)
            loops[here] += [(pair[1], pair[2])] if pair else []
        elif exchange := _COLLECTIVE.match(operation):
            # A TPU may run an exchange in several parts, beside other operations: they
            # have the same channel, groups of devices, and source.
            same = rest.partition(")")[2].partition("backend_config")[0]
            key = (same, *_arrays(kind)) if "channel_id" in same else (name,)
            collectives[key] = _collective(exchange, kind)
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', rest):
            called = re.search(r"calls=%?([\w.\-]+)", rest)
            if called and called[1] in convolves:
                operation = "convolution"
            cycles[here][operation] += int(estimate[1])

    def total(computation: str) -> Counter[str]:
        summed = Counter(cycles[computation])
        for condition, body in loops[computation]:
            for operation, count in total(body).items():
                summed[operation] += count * limits.get(condition, 1)
        return summed

    shares = total(entry)
    counted: Any = compiled.cost_analysis() or {"flops": products}
    return Program(
        memory_bytes(compiled),
        float(counted.get("flops", 0)),
        shares.total(),
        tuple(collectives.values()),
        convolutions,
        shares,
    )


def _arrays(kind: str) -> list[tuple[str, int, tuple[int, ...]]]:
    """Return the (dtype, bytes of an element, shape) of each array of a type."""
    return [
        (
            name + bits,
            int(bits or 8) // 8,
            tuple(map(int, filter(None, sizes.split(",")))),
        )
        for name, bits, sizes in _ARRAY.findall(kind)
    ]


def _collective(found: re.Match, kind: str) -> Collective:
    """Read an exchange; if it is only started, its type includes the operands."""
    if found[2] and kind.startswith("(("):  # ((operands), results)
        kind = kind.partition(")")[2]
    sized = [(n * math.prod(shape), dtype) for dtype, n, shape in _arrays(kind)]
    if found[2] and found[1] in ("all-gather", "collective-permute"):
        sized = [max(sized)]  # (operand, result, semaphores)
    return Collective(found[1], max(sized)[1], sum(n for n, _ in sized))


def _products(types: dict[str, str], kind: str, rest: str) -> int:
    """Count the operations of a GPU's convolution or product of matrices."""
    names = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
    found = _CUDNN.search(rest) or _CONTRACTED.search(rest)
    if not found or any(name not in types for name in names[:2]):
        return 0
    left, right = (_arrays(types[name])[0][2] for name in names[:2])
    result = _arrays(kind)[0][2]
    if found.re is _CONTRACTED:
        sizes = [left[int(n)] for n in re.findall(r"\d+", found[1])]
        return 2 * math.prod(result) * math.prod(sizes)
    # The forward pass that it is, or whose gradient it is.
    gradients = {"BackwardInput": (left, right), "BackwardFilter": (right, result)}
    output, kernel = gradients.get(found[1], (result, right))
    labels = rest.partition("dim_labels=")[2].partition("_")[2]  # o01i->b01f
    features = kernel[labels.index("o")]
    return 2 * math.prod(output) * math.prod(kernel) // features
