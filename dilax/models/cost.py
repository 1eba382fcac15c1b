"""What a network's layers cost, by arithmetic: operations, bytes, and memory kept.

A convolution of h'·w' outputs, k×k taps, c input and d output maps takes b·h'·w'·k²·c·d
multiplications and as many additions; so does each of its two gradients. The dilation
is not in it (paper §2), but for taps that fall into padding by zeros: as in XLA's
account, they take no part. Lowerings that take fewer (Winograd's) are counted alike, so
that rates compare.
"""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

import jax

from dilax.models.dilated_net import DilatedNet
from dilax.models.layer_calls import Inputs, LayerCall, layer_calls
from dilax.models.layers import DilatedConv


class Work(NamedTuple):
    """Of a layer in one pass: forward, the input's or the kernel's gradient.

    Attributes:
        flops: of the products, two a multiply-add; what runs one number at a time
            (biases, ReLU, pools, normalisation, upsampling) is not counted.
        bytes: read and written where each array passes between memory and chip once.

    Example:
        >>> Work(4, 2) + Work(1, 1)
        Work(flops=5, bytes=3)
    """

    flops: int
    bytes: int

    def __add__(self, other: tuple) -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


NONE = Work(0, 0)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Of a layer.

    Attributes:
        call: the layer, with its shapes.
        parameters: how many it has.
        forward: always runs.
        input_gradient: runs where a layer before is trained.
        kernel_gradient: runs where the layer is trained; of biases and scales too.
        kept: bytes of what it reads that the gradients need later; what dropout drew,
            and which values ReLU let pass, is small beside it.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> network_cost(dilation8_camvid(), (1, 900, 900, 3)).layers[0].parameters
        1792
    """

    call: LayerCall
    parameters: int
    forward: Work
    input_gradient: Work = NONE
    kernel_gradient: Work = NONE
    kept: int = 0

    @property
    def passes(self) -> tuple[Work, Work, Work]:
        """Forward, input's and kernel's gradient; `NONE` where one does not run."""
        return self.forward, self.input_gradient, self.kernel_gradient

    @property
    def total(self) -> Work:
        """All passes together."""
        return sum(self.passes, NONE)


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """Of a network on one batch: its layers in order, and their sums.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> network_cost(dilation8_camvid(), (1, 900, 900, 3)).parameters
        134313443
    """

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """How many the layers have."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def kept(self) -> int:
        """Bytes of activations from the forward pass that the gradients need."""
        return sum(layer.kept for layer in self.layers)

    @property
    def forward(self) -> Work:
        """Of a prediction."""
        return sum((layer.forward for layer in self.layers), NONE)

    @property
    def total(self) -> Work:
        """Of a training step, the loss and the optimizer aside."""
        return sum((layer.total for layer in self.layers), NONE)


def network_cost(
    model: DilatedNet,
    shape: tuple[int, int, int, int],
    trained: Collection[str] = ("front_end", "context"),
    inputs: Inputs = "images",
) -> NetworkCost:
    """What each layer costs on inputs of this shape, in the model's dtype.

    Args:
        model: the network.
        shape: (b, h, w, c) of images with their margins, or of the front end's maps.
        trained: the modules whose parameters are trained; empty for prediction.
        inputs: whether the network gets images or maps.

    Raises:
        ValueError: if the shape does not fit the network.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> cost = network_cost(dilation8_camvid(), (1, 900, 900, 3))
        >>> round(cost.forward.flops / 1e9), cost.parameters
        (1583, 134313443)

    Source: two operations a multiply-add, as XLA's cost analysis counts.
    """
    layers: list[LayerCost] = []
    flows = False  # whether a gradient reaches the layer's input
    for call in layer_calls(model, shape, inputs):
        trains = bool(call.params) and call.module.split("/")[0] in trained
        layers.append(_layer_cost(call, flows, trains))
        flows = flows or trains
    return NetworkCost(tuple(layers))


def _layer_cost(call: LayerCall, flows: bool, trains: bool) -> LayerCost:
    leaves = jax.tree.leaves(call.params)
    x, y = _bytes(call.input), _bytes(call.output)
    every = x + y + sum(map(_bytes, leaves))
    conv = isinstance(call.layer, DilatedConv)
    linear = conv or call.name == "upsampling"  # its input's gradient ignores the input
    flops = 0
    if conv:
        flops = 2 * _multiply_adds(call)
    return LayerCost(
        call,
        sum(leaf.size for leaf in leaves),
        Work(flops, every),
        Work(flops, every if linear else every + x) if flows else NONE,
        Work(flops, every) if trains else NONE,
        x if trains or (flows and not linear) else 0,
    )


def _multiply_adds(call: LayerCall) -> int:
    """Pairs of an output and a tap that reads the map, or its reflection."""
    *taps, c, d = call.params["kernel"].shape
    reflects = "reflect" in (call.border, getattr(call.layer, "padding", ""))
    pairs = call.input.shape[0] * c * d
    for axis, count in enumerate(taps, 1):
        size, out = call.input.shape[axis], call.output.shape[axis]
        before, step = call.pad + _own_padding(call, count), call.stride
        starts = [call.dilation * tap - before for tap in range(count)]
        inside = [
            max(0, min(out, -((s - size) // step)) - max(0, -(s // step)))
            for s in starts
        ]
        pairs *= count * out if reflects else sum(inside)
    return pairs


def _own_padding(call: LayerCall, count: int) -> int:
    """Cells that a convolution of so many taps pads before the first one."""
    padding = getattr(call.layer, "padding", "valid")
    if isinstance(padding, int):
        return padding
    return 0 if padding == "valid" else call.dilation * (count - 1) // 2


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
