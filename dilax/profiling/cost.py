"""The cost of a network's layers by arithmetic: operations, bytes, activations kept.

A convolution of h'·w' outputs, k×k taps, c input and d output maps takes b·h'·w'·k²·c·d
multiplications and as many additions; so does each of its two gradients. Dilation does
not change that (paper §2), except that taps in a padding of zeros are not counted, as
in XLA's cost analysis. Lowerings with fewer operations (Winograd) count the same, so
that rates are comparable: XLA's own `cost_analysis` counts what a lowering computes.

The layers are found by intercepting the calls of the network's own modules under
`jax.eval_shape`, so nothing here repeats an architecture, and nothing is computed.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dilax.models.dilated_net import DilatedNet
from dilax.models.layers import AveragePool, BatchNorm, DilatedConv, MaxPool
from dilax.ops.dilated_conv import pad_maps

Inputs = Literal["images", "maps"]
_LAYERS = (DilatedConv, MaxPool, AveragePool, BatchNorm)


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """A single layer: `call(params, x)` computes what the network computes there.

    ReLU and dropout belong to the layer before them.

    Attributes:
        module: the module that contains it, such as `"front_end"`; `""` for the
            network.
        name: its name in the parameters, or in the table of layers for a pool.
        layer: a module, or a function of maps.
        params: shapes of its parameters.
        input: shape and dtype of its input, before `pad`.
        output: shape and dtype of its output.
        pad: cells of zeros that the network adds around the input.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> layer_calls(dilation8_camvid(), (1, 900, 900, 3))[0].name
        'conv1_1'
    """

    module: str
    name: str
    layer: nn.Module | Callable[[Any], Any]
    params: dict[str, Any]
    input: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct
    pad: int = 0

    def __call__(self, params: dict[str, Any], x: jax.Array) -> Any:
        x = pad_maps(x, ((self.pad, self.pad),) * 2, "zero")
        if isinstance(self.layer, nn.Module):
            return self.layer.apply({"params": params}, x)
        return self.layer(x)

    @property
    def dilation(self) -> int:
        """The dilation of a convolution; 1 for other layers."""
        return self.layer.dilation if isinstance(self.layer, DilatedConv) else 1

    @property
    def stride(self) -> int:
        """The stride of a convolution; 1 for other layers."""
        return self.layer.stride if isinstance(self.layer, DilatedConv) else 1


def layer_calls(
    model: DilatedNet, shape: tuple[int, int, int, int], inputs: Inputs = "images"
) -> list[LayerCall]:
    """List every convolution, pool, normalization, and upsampling, in order.

    The upsampling inside FCN-8s and the pools with positions of SegNet are left out:
    they cost little compared with the convolutions.

    Args:
        model: the network.
        shape: (b, h, w, c) of its input: images with their margins, or maps.
        inputs: whether the input is images, or maps of the front end.

    Raises:
        ValueError: if the shape does not have four numbers, or is too small.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> calls = layer_calls(dilation8_camvid(), (1, 900, 900, 3))
        >>> calls[0].name, calls[0].output.shape
        ('conv1_1', (1, 898, 898, 64))
        >>> {call.name: call.output.shape for call in calls}["fc6"]
        (1, 66, 66, 4096)
    """
    if len(shape) != 4:
        raise ValueError(f"shape={shape}: is not (batch, height, width, channels)")
    found: list[tuple[nn.Module, Any, Any]] = []
    maps: list[jax.ShapeDtypeStruct] = []  # the context module's input
    parts: list[jax.ShapeDtypeStruct] = []  # outputs of front end and context module

    def intercept(function, args, kwargs, context):
        out = function(*args, **kwargs)
        if isinstance(context.module, _LAYERS):
            found.append((context.module, _shape(args[0]), _shape(out)))
        if context.method_name == "__call__":
            if context.module.path == ("context",):
                maps.append(_shape(args[0]))
            if context.module.path in (("front_end",), ("context",)):
                parts.append(_shape(out))
        return out

    method = "__call__" if inputs == "images" else "from_maps"
    start = functools.partial(model.init_with_output, method=method)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with nn.intercept_methods(intercept):
        out, variables = jax.eval_shape(start, jax.random.key(0), x)
    calls: list[LayerCall] = []
    before = maps  # the input of the next layer of the context module
    for module, given, gives in found:
        *modules, name = module.path
        params = variables["params"]
        for part in module.path:
            params = params.get(part, {})  # a pool has no parameters
        pad = 0
        if model.context is not None and modules == ["context"]:
            # The module pads between its layers: the call's input is the unpadded map.
            [unpadded] = before
            pad = (given.shape[1] - unpadded.shape[1]) // 2
            given = jax.ShapeDtypeStruct(unpadded.shape, given.dtype)
            before = [gives]
        alone = module.clone(parent=None)
        calls.append(
            LayerCall("/".join(modules), name, alone, params, given, gives, pad)
        )
    scores = parts[-1].shape
    if scores != out.shape and model.map_stride > 1:
        # DUC's rearrangement and the upsampling run as one.
        enlarge = model.clone(context=None).enlarged
        given = jax.ShapeDtypeStruct(scores, out.dtype)
        calls.append(LayerCall("", "upsampling", enlarge, {}, given, _shape(out)))
    return calls


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class Work(NamedTuple):
    """The work of one pass: forward, the input's or the kernel's gradient.

    Attributes:
        flops: operations of the products, two per multiply-add. Elementwise operations
            (biases, ReLU, pools, normalization, upsampling) are not counted.
        bytes: bytes read and written if each array moves between memory and chip once.

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
    """The cost of a layer.

    Attributes:
        call: the layer, with its shapes.
        parameters: number of parameters.
        passes: the work of the passes that run: `"forward"`; `"input_gradient"` if an
            earlier layer is trained; `"kernel_gradient"` if the layer itself is.
        kept: bytes of its input that the gradients need later. The masks of dropout and
            ReLU are small in comparison.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> network_cost(dilation8_camvid(), (1, 900, 900, 3)).layers[0].parameters
        1792
    """

    call: LayerCall
    parameters: int
    passes: dict[str, Work]
    kept: int = 0

    @property
    def total(self) -> Work:
        """All passes together."""
        return sum(self.passes.values(), NONE)


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """The cost of a network on one batch: its layers in order, and their sums.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> network_cost(dilation8_camvid(), (1, 900, 900, 3)).parameters
        134313443
    """

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def kept(self) -> int:
        """Bytes of activations from the forward pass that the gradients need."""
        return sum(layer.kept for layer in self.layers)

    @property
    def forward(self) -> Work:
        """The work of a prediction."""
        return sum((layer.passes["forward"] for layer in self.layers), NONE)

    @property
    def total(self) -> Work:
        """The work of a training step without the loss and the optimizer."""
        return sum((layer.total for layer in self.layers), NONE)


def network_cost(
    model: DilatedNet,
    shape: tuple[int, int, int, int],
    trained: Collection[str] = ("front_end", "context"),
    inputs: Inputs = "images",
) -> NetworkCost:
    """Compute the cost of each layer for inputs of this shape, in the model's dtype.

    Args:
        model: the network.
        shape: (b, h, w, c) of images with their margins, or of the front end's maps.
        trained: the modules whose parameters are trained; empty for prediction.
        inputs: whether the input is images or maps.

    Raises:
        ValueError: if the shape does not fit the network.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> cost = network_cost(dilation8_camvid(), (1, 900, 900, 3))
        >>> round(cost.forward.flops / 1e9), cost.parameters
        (1583, 134313443)

    Source: two operations per multiply-add, as in XLA's cost analysis.
    """
    layers: list[LayerCost] = []
    flows = False  # whether a gradient reaches the layer's input
    for call in layer_calls(model, shape, inputs):
        trains = bool(call.params) and call.module.split("/")[0] in trained
        leaves = jax.tree.leaves(call.params)
        x, y = _bytes(call.input), _bytes(call.output)
        moved = x + y + sum(map(_bytes, leaves))
        conv = isinstance(call.layer, DilatedConv)
        flops = 2 * _multiply_adds(call) if conv else 0
        # The input's gradient of a linear layer does not read the input.
        linear = conv or call.name == "upsampling"
        passes = {"forward": Work(flops, moved)}
        if flows:
            passes["input_gradient"] = Work(flops, moved if linear else moved + x)
        if trains:
            passes["kernel_gradient"] = Work(flops, moved)
        parameters = sum(leaf.size for leaf in leaves)
        kept = x if trains or (flows and not linear) else 0
        layers.append(LayerCost(call, parameters, passes, kept))
        flows = flows or trains
    return NetworkCost(tuple(layers))


def _multiply_adds(call: LayerCall) -> int:
    """Count pairs of an output and a tap that reads the map, or its reflection."""
    *taps, c, d = call.params["kernel"].shape
    padding = getattr(call.layer, "padding", "valid")
    pairs = call.input.shape[0] * c * d
    for axis, count in enumerate(taps, 1):
        size, out = call.input.shape[axis], call.output.shape[axis]
        if padding == "reflect":
            pairs *= count * out
            continue
        same = call.dilation * (count - 1) // 2 if padding == "same" else 0
        before = call.pad + (padding if isinstance(padding, int) else same)
        inside = 0
        for tap in range(count):  # output i reads cell start + i·stride
            start = call.dilation * tap - before
            first = max(0, -(start // call.stride))
            end = min(out, -((start - size) // call.stride))
            inside += max(0, end - first)
        pairs *= inside
    return pairs


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
